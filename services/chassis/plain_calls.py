"""Generate and StreamGenerate: one request an RPC, over the same core as sessions.

What becomes ready while a write is under way leaves in one message, so a caller that falls
behind costs its answer's length and no more writes than it reads. Sessions are elsewhere; what
to answer is the handler's business.
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.message import DecodeError

from anabranch.v1 import generation_pb2
from services.chassis.answers import AnswerBuilder
from services.chassis.caller_writes import CallerWrites, reads_too_slowly
from services.chassis.coalescing import coalesce_chunks
from services.chassis.errors import Fault, fault_of
from services.chassis.model_handler import Outlet
from services.chassis.model_streams import ActiveRequest, ActiveRequests
from services.chassis.principal import current_principal

# A chunk of one token is some 30 bytes on the wire, and with its object several times that: this
# many make some 16 KiB, and joining them is worth the decoding.
_JOIN_AT_LEAST = 128
# Chunks of an answer that nobody sees before its end are added up as they come, so that a long
# answer's end holds up nobody else.
_ADD_AT_ONCE = 128
# Above this size joining saves nothing, and what is joined must fit a message.
_JOIN_UP_TO = 1024 * 1024


class _Bell:
    """Wakes the one task that waits, however often it is rung."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class _Stream:
    """The outlet of StreamGenerate: what its caller has not taken yet.

    At most `limit` bytes and one chunk are held, what is being written included;
    then the request is abandoned at once, and the caller hears SLOW_READER.
    """

    __slots__ = (
        "_bell",
        "_fault",
        "_join_at",
        "_limit",
        "_over",
        "_pending",
        "_under_way",
        "_waiting",
        "request",
    )

    def __init__(self, limit: int) -> None:
        self.request: ActiveRequest | None = None
        self._limit = limit
        self._bell = _Bell()
        self._pending: list[bytes] = []
        self._waiting = 0
        self._under_way = 0
        self._join_at = _JOIN_AT_LEAST
        self._over = False
        self._fault: Fault | None = None

    @property
    def held(self) -> int:
        """Bytes held for the caller."""
        return self._waiting + self._under_way

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self._fault is not None:
            return
        if self.held > self._limit and not last:
            self._join()
            if self.held > self._limit:
                self._overflow()
                return
        self._pending.append(raw)
        self._waiting += len(raw)
        self._over = last
        if len(self._pending) >= self._join_at:
            self._join()
        self._bell.ring()

    def fail(self, fault: Fault) -> None:
        self._fault = self._fault or fault
        self._bell.ring()

    async def next(self) -> list[bytes]:
        """What came since; nothing once the answer is complete. Raises Fault when it failed."""
        self._under_way = 0
        if not self._pending:
            if self._over:
                return []
            if self._fault is None:
                await self._bell.wait()
        if not self._pending and self._fault is not None:
            raise self._fault
        self._join()
        ready, self._pending = self._pending, []
        self._under_way, self._waiting = self._waiting, 0
        self._join_at = _JOIN_AT_LEAST
        return ready

    def _join(self) -> None:
        if len(self._pending) > 1 and self._waiting <= _JOIN_UP_TO:
            self._pending = coalesce_chunks(self._pending)
            self._waiting = sum(map(len, self._pending))
        # Joining again pays only once as much has gathered as is there now.
        self._join_at = max(_JOIN_AT_LEAST, 2 * len(self._pending))

    def _overflow(self) -> None:
        self._pending, self._waiting = [], 0
        self.fail(reads_too_slowly("the answer came faster than it was read"))
        # Not within this call: the handler is in the midst of handing over this very answer.
        asyncio.get_running_loop().call_soon(self._abandon)

    def _abandon(self) -> None:
        if self.request is not None:
            self.request.abandon()


class _Whole:
    """The outlet of Generate: adds the answer up, and wakes its caller's task once."""

    __slots__ = ("_answer", "_bell", "_fault", "_over", "_pending")

    def __init__(self) -> None:
        self._answer = AnswerBuilder()
        self._bell = _Bell()
        self._pending: list[bytes] = []
        self._over = False
        self._fault: Fault | None = None

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._pending.append(raw)
        if last:
            self._over = True
            self._bell.ring()
        elif len(self._pending) >= _ADD_AT_ONCE:
            self._add()

    def fail(self, fault: Fault) -> None:
        self._fault = self._fault or fault
        self._bell.ring()

    async def response(self) -> generation_pb2.GenerateResponse:
        """The answer once it is complete. Raises Fault when it failed."""
        if not self._over and self._fault is None:
            await self._bell.wait()
        self._add()
        if self._fault is not None:
            raise self._fault
        return self._answer.response()

    def _add(self) -> None:
        """Never raises: this is the backend's turn of the loop, and not only this answer's."""
        try:
            for raw in self._pending:
                self._answer.add(generation_pb2.GenerateChunk.FromString(raw))
        except DecodeError as exc:
            self.fail(fault_of(exc))
        self._pending.clear()


class PlainCalls:
    """The generation RPCs that carry one request each."""

    def __init__(self, requests: ActiveRequests) -> None:
        self._requests = requests

    async def generate(
        self, raw: bytes, context: grpc.aio.ServicerContext
    ) -> generation_pb2.GenerateResponse:
        """The whole answer. Raises Fault."""
        outlet = _Whole()
        request = self._open(raw, context, outlet)
        try:
            return await outlet.response()
        finally:
            request.abandon()

    async def stream_generate(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        """Writes the answer to the caller as it comes. Raises Fault."""
        limits = self._requests.limits
        outlet = _Stream(limits.stream_buffer_bytes)
        request = outlet.request = self._open(raw, context, outlet)
        try:
            with CallerWrites(context, stall=limits.write_stall) as writes:
                while chunks := await outlet.next():
                    for chunk in chunks:
                        await writes.write(chunk)
        finally:
            request.abandon()
            outlet.request = None  # no cycle for the collector to find

    def _open(self, raw: bytes, context: grpc.aio.ServicerContext, outlet: Outlet) -> ActiveRequest:
        return self._requests.open(
            raw,
            outlet,
            current_principal(),
            traceparent=metadata_value(context, "traceparent"),
            time_remaining=context.time_remaining(),
        )


def metadata_value(context: grpc.aio.ServicerContext, name: str) -> str:
    """What the caller sent under that name; empty for nothing."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""
