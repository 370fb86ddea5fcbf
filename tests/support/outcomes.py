"""How one call ends, whole: what two callers would have to tell apart. It calls; it judges nothing.

A call of any RPC, by its descriptor, with a request of its type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from anabranch.v1 import session_pb2
from tests.support.waiting import BOUND_S

CLOSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Code, message, details as they came, and the answer, of a unary RPC that succeeded."""

    code: grpc.StatusCode
    message: str = ""
    details: bytes = b""
    answer: Message | None = None

    @property
    def open(self) -> bool:
        """Whether whoever called was let in."""
        return self.code not in CLOSED


def path_of(method: MethodDescriptor) -> str:
    """As it is dispatched."""
    return f"/{method.containing_service.full_name}/{method.name}"


async def outcome_of(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Message, metadata: Metadata
) -> Outcome:
    """The end of a call. Of a session: of the stream that `request` starts, or, when it starts
    none, of its opening."""
    write: Any = type(request).SerializeToString
    read: Any = message_factory.GetMessageClass(method.output_type).FromString
    path, answer = path_of(method), None
    try:
        if method.client_streaming:
            return await _of_session(channel.stream_stream(path, write, read), request, metadata)
        if method.server_streaming:
            stream = channel.unary_stream(path, write, read)
            async for _ in stream(request, metadata=metadata, timeout=BOUND_S):
                pass
        else:
            unary = channel.unary_unary(path, write, read)
            answer = await unary(request, metadata=metadata, timeout=BOUND_S)
    except grpc.aio.AioRpcError as error:
        return _of_error(error)
    return Outcome(grpc.StatusCode.OK, answer=answer)


async def _of_session(open_call: Any, request: Message, metadata: Metadata) -> Outcome:
    assert isinstance(request, session_pb2.SessionRequest)
    call = open_call(metadata=metadata, timeout=BOUND_S)
    if await call.read() is grpc.aio.EOF:
        return Outcome(await call.code())
    found = Outcome(grpc.StatusCode.OK)
    if request.frames:
        await call.write(request)
        async with asyncio.timeout(BOUND_S):
            while not (last := [f for f in (await call.read()).frames if f.last]):
                pass
        status = last[0].error
        code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
        found = Outcome(code, status.message, b"".join(d.value for d in status.details))
    call.cancel()
    return found


def _of_error(error: grpc.aio.AioRpcError) -> Outcome:
    trailing = dict(error.trailing_metadata() or ())
    details = trailing.get("grpc-status-details-bin", b"")
    return Outcome(error.code(), error.details() or "", bytes(details))
