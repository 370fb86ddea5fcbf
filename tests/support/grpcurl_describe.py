"""What `grpcurl describe` prints: an element's source with its comments, from reflection.

It asks the server as grpcurl does and knows nothing of the contracts' files here. The layout is
grpcurl's: compact, elements in order, names of types in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

_METHOD = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_TIMEOUT_S = 30.0
_SCALARS = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


def _files(channel: grpc.Channel, symbol: str) -> list[bytes]:
    """The file that declares the symbol, and what it imports; empty when nobody knows it."""
    call = channel.stream_stream(
        _METHOD,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    answer = next(call(iter([asked]), timeout=_TIMEOUT_S))
    return list(answer.file_descriptor_response.file_descriptor_proto)


def _pool(raw: list[bytes]) -> descriptor_pool.DescriptorPool:
    """The server's types, apart from those of this process."""
    pool = descriptor_pool.DescriptorPool()
    waiting, done = [FileDescriptorProto.FromString(file) for file in raw], set[str]()
    while waiting:
        ready = [file for file in waiting if done.issuperset(file.dependency)]
        if not ready:
            raise ValueError("the server's files import others that it does not have")
        for file in ready:
            pool.Add(file)
            done.add(file.name)
            waiting.remove(file)
    return pool


def message_class(channel: grpc.Channel, name: str) -> type[Message] | None:
    """The message type of this name as the server describes it; None when it does not."""
    raw = _files(channel, name)
    if not raw:
        return None
    found: type[Message] = message_factory.GetMessageClass(_pool(raw).FindMessageTypeByName(name))
    return found


def describe(channel: grpc.Channel, symbol: str) -> str:
    """The text of one service, method, message or enum. LookupError when there is none."""
    symbol = symbol.removeprefix(".")
    raw = _files(channel, symbol)
    if not raw:
        raise LookupError(f"the server describes no {symbol!r}")
    file = _with_options(raw)
    for found in _elements(file):
        if found.name == symbol:
            text = "\n".join(found.render(found.proto, found.path, _comments(file), ""))
            return f"{symbol} is {found.kind}:\n{text}"
    raise LookupError(f"{symbol!r} is no service, method, message or enum")


def _with_options(raw: list[bytes]) -> Any:
    """The first file, read with the options that the server's own files declare."""
    pool = _pool(raw)
    try:
        kind = pool.FindMessageTypeByName("google.protobuf.FileDescriptorProto")
    except KeyError:
        return FileDescriptorProto.FromString(raw[0])
    return message_factory.GetMessageClass(kind).FromString(raw[0])


_Path = tuple[int, ...]
_Comments = dict[_Path, list[str]]
_Render = Callable[[Any, _Path, _Comments, str], Iterator[str]]


@dataclass(frozen=True)
class _Element:
    name: str
    kind: str
    proto: Any
    path: _Path
    render: _Render


def _comments(file: Any) -> _Comments:
    return {
        tuple(location.path): location.leading_comments.rstrip("\n").split("\n")
        for location in file.source_code_info.location
        if location.leading_comments
    }


def _elements(file: Any) -> Iterator[_Element]:
    prefix = f"{file.package}." if file.package else ""
    for i, service in enumerate(file.service):
        yield _Element(prefix + service.name, "a service", service, (6, i), _service)
        for j, method in enumerate(service.method):
            name = f"{prefix}{service.name}.{method.name}"
            yield _Element(name, "a method", method, (6, i, 2, j), _rpc)
    for i, message in enumerate(file.message_type):
        yield from _within(message, prefix, (4, i))
    for i, enum in enumerate(file.enum_type):
        yield _Element(prefix + enum.name, "an enum", enum, (5, i), _enum)


def _within(message: Any, prefix: str, path: _Path) -> Iterator[_Element]:
    name = prefix + message.name
    yield _Element(name, "a message", message, path, _message)
    for i, nested in enumerate(message.nested_type):
        yield from _within(nested, f"{name}.", (*path, 3, i))
    for i, enum in enumerate(message.enum_type):
        yield _Element(f"{name}.{enum.name}", "an enum", enum, (*path, 4, i), _enum)


def _doc(path: _Path, comments: _Comments, indent: str) -> Iterator[str]:
    for line in comments.get(path, []):
        yield f"{indent}//{line}"


def _service(proto: Any, path: _Path, comments: _Comments, indent: str) -> Iterator[str]:
    yield from _doc(path, comments, indent)
    yield f"{indent}service {proto.name} {{"
    for i, method in sorted(enumerate(proto.method), key=lambda one: one[1].name):
        yield from _rpc(method, (*path, 2, i), comments, indent + "  ")
    yield f"{indent}}}"


def _rpc(proto: Any, path: _Path, comments: _Comments, indent: str) -> Iterator[str]:
    yield from _doc(path, comments, indent)
    sent = "stream " * proto.client_streaming + proto.input_type
    received = "stream " * proto.server_streaming + proto.output_type
    head = f"{indent}rpc {proto.name} ( {sent} ) returns ( {received} )"
    options = list(_options(proto.options))
    if not options:
        yield f"{head};"
        return
    yield f"{head} {{"
    yield from (f"{indent}  {option}" for option in options)
    yield f"{indent}}}"


def _options(options: Any) -> Iterator[str]:
    for field, value in sorted(options.ListFields(), key=lambda one: one[0].number):
        name = f"(.{field.full_name})" if field.is_extension else field.name
        text = " ".join(str(value).split()) if isinstance(value, Message) else str(value)
        yield (
            f"option {name} = {{ {text} }};"
            if isinstance(value, Message)
            else (f"option {name} = {text};")
        )


def _message(proto: Any, path: _Path, comments: _Comments, indent: str) -> Iterator[str]:
    maps = {nested.name: nested for nested in proto.nested_type if nested.options.map_entry}
    yield from _doc(path, comments, indent)
    yield f"{indent}message {proto.name} {{"
    inner, shown = indent + "  ", set[int]()
    for i, field in sorted(enumerate(proto.field), key=lambda one: one[1].number):
        if not field.HasField("oneof_index") or field.proto3_optional:
            yield from _field(field, (*path, 2, i), comments, inner, maps)
        elif field.oneof_index not in shown:
            shown.add(field.oneof_index)
            yield from _doc((*path, 8, field.oneof_index), comments, inner)
            yield f"{inner}oneof {proto.oneof_decl[field.oneof_index].name} {{"
            for j, choice in enumerate(proto.field):
                if choice.HasField("oneof_index") and choice.oneof_index == field.oneof_index:
                    yield from _field(choice, (*path, 2, j), comments, inner + "  ", maps)
            yield f"{inner}}}"
    for i, nested in enumerate(proto.nested_type):
        if nested.name not in maps:
            yield from _message(nested, (*path, 3, i), comments, inner)
    for i, enum in enumerate(proto.enum_type):
        yield from _enum(enum, (*path, 4, i), comments, inner)
    yield f"{indent}}}"


def _field(
    proto: Any, path: _Path, comments: _Comments, indent: str, maps: dict[str, Any]
) -> Iterator[str]:
    yield from _doc(path, comments, indent)
    entry = maps.get(proto.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = (_type(field) for field in entry.field)
        yield f"{indent}map<{key}, {value}> {proto.name} = {proto.number};"
        return
    label = "optional " if proto.proto3_optional else ""
    if proto.label == FieldDescriptorProto.LABEL_REPEATED:
        label = "repeated "
    yield f"{indent}{label}{_type(proto)} {proto.name} = {proto.number};"


def _type(field: Any) -> str:
    return str(field.type_name) or _SCALARS[field.type]


def _enum(proto: Any, path: _Path, comments: _Comments, indent: str) -> Iterator[str]:
    yield from _doc(path, comments, indent)
    yield f"{indent}enum {proto.name} {{"
    for i, value in sorted(enumerate(proto.value), key=lambda one: one[1].number):
        yield from _doc((*path, 2, i), comments, indent + "  ")
        yield f"{indent}  {value.name} = {value.number};"
    yield f"{indent}}}"
