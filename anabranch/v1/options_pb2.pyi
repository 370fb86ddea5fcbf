from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor

class AccessRule(_message.Message):
    __slots__ = ("public", "any_scope", "own_tenant_scope", "model_bound")
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    ANY_SCOPE_FIELD_NUMBER: _ClassVar[int]
    OWN_TENANT_SCOPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_BOUND_FIELD_NUMBER: _ClassVar[int]
    public: bool
    any_scope: _containers.RepeatedScalarFieldContainer[str]
    own_tenant_scope: _containers.RepeatedScalarFieldContainer[str]
    model_bound: bool
    def __init__(self, public: _Optional[bool] = ..., any_scope: _Optional[_Iterable[str]] = ..., own_tenant_scope: _Optional[_Iterable[str]] = ..., model_bound: _Optional[bool] = ...) -> None: ...
