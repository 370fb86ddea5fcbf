"""gRPC server reflection, v1 and v1alpha, answered from a protoset so that comments survive.

The official Python service describes files from the runtime's pool, which has dropped every
comment. The two protocol versions differ in nothing but their package, so one set of messages
serves both. It decides nothing about who may ask.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.chassis.errors import Violation, invalid

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_HEALTH = "grpc.health.v1.Health"


def add_reflection(server: Any, protoset: bytes, services: Sequence[str]) -> None:
    """Serves reflection on `server` for `services`, full names, and for health and itself.

    `protoset` is a serialised FileDescriptorSet with imports; with source info, tools show the
    comments. Raises google.protobuf.message.DecodeError when it is not one.
    """
    files = FileDescriptorSet.FromString(protoset).file
    catalogue = Catalogue([*files, *_standard_files()])
    names = sorted({*services, _HEALTH, V1, V1ALPHA})

    async def info(
        requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        async for raw in requests:
            request = _read(raw)
            answer = _answer(request, catalogue, names)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (V1, V1ALPHA)
        )
    )


def _read(raw: bytes) -> Any:
    """The request. Here, since what a deserialiser raises is taken for a failure of ours."""
    try:
        return reflection_pb2.ServerReflectionRequest.FromString(raw)
    except DecodeError as garbage:
        raise invalid([Violation("", "is not a ServerReflectionRequest")]) from garbage


class Catalogue:
    """Files by name, by the symbols that they declare and by the extensions that they declare."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._serialised: dict[str, bytes] = {}
        self._imports: dict[str, tuple[str, ...]] = {}
        self._symbols: dict[str, str] = {}
        self._extensions: dict[str, dict[int, str]] = {}
        for file in files:
            if file.name in self._serialised:
                continue
            self._serialised[file.name] = file.SerializeToString()
            self._imports[file.name] = tuple(file.dependency)
            for symbol in _symbols(file):
                self._symbols.setdefault(symbol, file.name)
            for extension in _extensions(file):
                extended = extension.extendee.removeprefix(".")
                self._extensions.setdefault(extended, {})[extension.number] = file.name

    def with_imports(self, name: str) -> list[bytes]:
        """The file and all that it imports, itself first; KeyError when it is unknown."""
        order, found = [name], {name}
        for current in order:
            for imported in self._imports[current]:
                if imported not in found and imported in self._imports:
                    found.add(imported)
                    order.append(imported)
        return [self._serialised[each] for each in order]

    def file_of_symbol(self, symbol: str) -> str:
        return self._symbols[symbol.removeprefix(".")]

    def file_of_extension(self, extended: str, number: int) -> str:
        return self._extensions[extended.removeprefix(".")][number]

    def extension_numbers(self, extended: str) -> list[int]:
        """Ascending, possibly none; KeyError when there is no such type."""
        extended = extended.removeprefix(".")
        self._symbols[extended]
        return sorted(self._extensions.get(extended, ()))


def _answer(request: Any, catalogue: Catalogue, services: Sequence[str]) -> Any:
    answer = reflection_pb2.ServerReflectionResponse()
    asked = request.WhichOneof("message_request")
    try:
        match asked:
            case "list_services":
                for name in services:
                    answer.list_services_response.service.add(name=name)
            case "file_by_filename":
                _add_files(answer, catalogue, request.file_by_filename)
            case "file_containing_symbol":
                _add_files(
                    answer, catalogue, catalogue.file_of_symbol(request.file_containing_symbol)
                )
            case "file_containing_extension":
                wanted = request.file_containing_extension
                _add_files(
                    answer,
                    catalogue,
                    catalogue.file_of_extension(wanted.containing_type, wanted.extension_number),
                )
            case "all_extension_numbers_of_type":
                extended = request.all_extension_numbers_of_type
                numbers = catalogue.extension_numbers(extended)
                answer.all_extension_numbers_response.base_type_name = extended
                answer.all_extension_numbers_response.extension_number.extend(numbers)
            case _:
                _refuse(answer, grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")
    except KeyError:
        _refuse(answer, grpc.StatusCode.NOT_FOUND, f"{asked}: nothing of that name here")
    return answer


def _add_files(answer: Any, catalogue: Catalogue, name: str) -> None:
    files = catalogue.with_imports(name)
    answer.file_descriptor_response.file_descriptor_proto.extend(files)


def _refuse(answer: Any, code: grpc.StatusCode, message: str) -> None:
    answer.error_response.error_code = code.value[0]
    answer.error_response.error_message = message


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _symbols_of(message, prefix)
    for enum in file.enum_type:
        yield prefix + enum.name
        yield from (prefix + value.name for value in enum.value)
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)
    yield from (prefix + extension.name for extension in file.extension)


def _symbols_of(message: DescriptorProto, prefix: str) -> Iterator[str]:
    yield prefix + message.name
    inner = f"{prefix}{message.name}."
    for nested in message.nested_type:
        yield from _symbols_of(nested, inner)
    for enum in message.enum_type:
        yield inner + enum.name
        yield from (inner + value.name for value in enum.value)
    yield from (inner + field.name for field in message.field)
    yield from (inner + oneof.name for oneof in message.oneof_decl)
    yield from (inner + extension.name for extension in message.extension)


def _extensions(file: FileDescriptorProto) -> Iterator[FieldDescriptorProto]:
    yield from file.extension
    pending = list(file.message_type)
    while pending:
        message = pending.pop()
        yield from message.extension
        pending.extend(message.nested_type)


def _standard_files() -> Iterator[FileDescriptorProto]:
    yield FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    # No contract names them, but errors carry them, and tools ask for the types of what they print.
    yield FileDescriptorProto.FromString(error_details_pb2.DESCRIPTOR.serialized_pb)
    for file in (any_pb2, duration_pb2, timestamp_pb2, wrappers_pb2, channelz_pb2):
        yield FileDescriptorProto.FromString(file.DESCRIPTOR.serialized_pb)
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    yield alpha
    yield _renamed(alpha, "grpc.reflection.v1")


def _renamed(alpha: FileDescriptorProto, package: str) -> FileDescriptorProto:
    """The reflection protocol under another package, which is all that v1 changed."""
    file = FileDescriptorProto()
    file.CopyFrom(alpha)
    file.package, file.name = package, f"{package.replace('.', '/')}/reflection.proto"
    before, after = f".{alpha.package}.", f".{package}."
    for message in file.message_type:
        for field in filter(lambda one: one.type_name, message.field):
            field.type_name = field.type_name.replace(before, after)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(before, after)
            method.output_type = method.output_type.replace(before, after)
    return file
