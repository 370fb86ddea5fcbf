from anabranch.v1 import generation_pb2 as _generation_pb2
from anabranch.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RelaySessionRequest(_message.Message):
    __slots__ = ("frames", "authorization", "open", "resume", "sequence", "ack", "close")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[RelaySessionRequestFrame]
    authorization: str
    open: _session_pb2.SessionOpen
    resume: _session_pb2.SessionResume
    sequence: int
    ack: int
    close: bool
    def __init__(self, frames: _Optional[_Iterable[_Union[RelaySessionRequestFrame, _Mapping]]] = ..., authorization: _Optional[str] = ..., open: _Optional[_Union[_session_pb2.SessionOpen, _Mapping]] = ..., resume: _Optional[_Union[_session_pb2.SessionResume, _Mapping]] = ..., sequence: _Optional[int] = ..., ack: _Optional[int] = ..., close: _Optional[bool] = ...) -> None: ...

class RelaySessionRequestFrame(_message.Message):
    __slots__ = ("stream", "start", "cancel", "traceparent", "on_behalf_of", "mask")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    stream: int
    start: bytes
    cancel: _session_pb2.SessionCancel
    traceparent: str
    on_behalf_of: _session_pb2.Caller
    mask: _containers.RepeatedScalarFieldContainer[_generation_pb2.PiiKind]
    def __init__(self, stream: _Optional[int] = ..., start: _Optional[bytes] = ..., cancel: _Optional[_Union[_session_pb2.SessionCancel, _Mapping]] = ..., traceparent: _Optional[str] = ..., on_behalf_of: _Optional[_Union[_session_pb2.Caller, _Mapping]] = ..., mask: _Optional[_Iterable[_Union[_generation_pb2.PiiKind, str]]] = ...) -> None: ...

class RelaySessionResponse(_message.Message):
    __slots__ = ("ready", "frames", "load", "go_away", "sequence", "ack", "resumed", "prefix_cache", "models")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ready: _session_pb2.SessionReady
    frames: _containers.RepeatedCompositeFieldContainer[RelaySessionResponseFrame]
    load: _session_pb2.LoadReport
    go_away: _session_pb2.GoAway
    sequence: int
    ack: int
    resumed: _session_pb2.SessionResumed
    prefix_cache: _session_pb2.PrefixCacheEvents
    models: _session_pb2.ServedModels
    def __init__(self, ready: _Optional[_Union[_session_pb2.SessionReady, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[RelaySessionResponseFrame, _Mapping]]] = ..., load: _Optional[_Union[_session_pb2.LoadReport, _Mapping]] = ..., go_away: _Optional[_Union[_session_pb2.GoAway, _Mapping]] = ..., sequence: _Optional[int] = ..., ack: _Optional[int] = ..., resumed: _Optional[_Union[_session_pb2.SessionResumed, _Mapping]] = ..., prefix_cache: _Optional[_Union[_session_pb2.PrefixCacheEvents, _Mapping]] = ..., models: _Optional[_Union[_session_pb2.ServedModels, _Mapping]] = ...) -> None: ...

class RelaySessionResponseFrame(_message.Message):
    __slots__ = ("stream", "chunk", "error", "last", "tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    chunk: bytes
    error: bytes
    last: bool
    tokens: int
    def __init__(self, stream: _Optional[int] = ..., chunk: _Optional[bytes] = ..., error: _Optional[bytes] = ..., last: _Optional[bool] = ..., tokens: _Optional[int] = ...) -> None: ...
