"""One call at a server: what its handler sees, in the terms of grpc.aio's ServicerContext.

Handlers, generated servicers and interceptors written for grpc.aio run on it unchanged;
what of the context they use is here, the rest of grpc.aio is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.frames import Code
from services.chassis.http2.messages import (
    ENCODINGS,
    Budget,
    MessageReader,
    MessageTooLarge,
    MessageUnreadable,
    NoRoom,
)
from services.chassis.http2.stream import Stream

if TYPE_CHECKING:
    from services.chassis.http2.server_connection import ServerConnection

_log = logging.getLogger(__name__)

_ANSWER = (
    b"\x88"  # :status 200, from the static table
    + headers.literal("content-type", "application/grpc")
    + headers.literal("grpc-accept-encoding", ",".join(ENCODINGS))
)
_OK = headers.literal("grpc-status", "0")

Serializer = Callable[[Any], bytes] | None
Handled = Callable[[], None]


class ServerCall(Stream):
    """A call between its HEADERS and its trailers. Also the handler's context."""

    def __init__(
        self,
        connection: ServerConnection,
        number: int,
        method: str,
        metadata: headers.Metadata,
        *,
        timeout: float | None,
        encoding: str,
        budget: Budget,
    ) -> None:
        super().__init__(connection, number)
        self.method = method
        self.over = False
        self.opened_at = connection.loop.time()
        self.task: asyncio.Task[None] | None = None
        self.request_streaming = True
        self.begin: Handled | None = None
        self.incoming = MessageReader(connection.limits.message_bytes, encoding)
        self._budget = budget
        self._metadata = metadata
        self._arrived: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._answering = False
        self._serializer: Serializer = None
        self._deserializer: Callable[[bytes], Any] | None = None
        self._code: Any = None
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._done: list[Callable[[Any], None]] = []
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._deadline = connection.loop.time() + timeout
            self._timer = connection.loop.call_at(self._deadline, self.expire)

    def speaks(self, deserializer: Callable[[bytes], Any] | None, serializer: Serializer) -> None:
        """How messages become bytes and bytes messages, from here on."""
        self._deserializer = deserializer
        self._serializer = serializer

    # From the stream

    def on_messages(self, messages: list[bytes]) -> None:
        if self.over:
            return
        self._arrived.extend(messages)
        self.unread += sum(map(len, messages)) + len(messages) * h2.MESSAGE_HEAD_BYTES
        if not self.request_streaming and len(self._arrived) > 1:
            self.finish(grpc.StatusCode.INTERNAL, "more than one request message")
            return
        self._wake()

    def on_input_over(self) -> None:
        if self.over:
            return
        if not self.request_streaming and not self._arrived:
            self.finish(grpc.StatusCode.INTERNAL, "the request message is missing")
            return
        begin, self.begin = self.begin, None
        if begin is not None:
            begin()
        self._wake()

    def on_unreadable(self, exc: MessageTooLarge | MessageUnreadable | NoRoom) -> None:
        code = (
            grpc.StatusCode.INTERNAL
            if isinstance(exc, MessageUnreadable)
            else grpc.StatusCode.RESOURCE_EXHAUSTED
        )
        self.finish(code, str(exc))
        self.stop()

    def on_broken(self, code: int, why: str) -> None:
        self._ended()
        self.stop()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.over:
            return
        if self.pending:
            # The caller does not read: it need not be told, and what waits is not kept for it.
            self.connection.reset(self.number, Code.CANCEL, "the deadline has passed")
            return
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self.stop()

    def stop(self) -> None:
        """Cancels the handler, wherever it is."""
        if self.task is not None:
            self.task.cancel()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    # The handler's context

    async def read(self) -> Any:
        """The next request, or grpc.aio.EOF. Raises InternalError when the call is over."""
        while not self._arrived:
            if self.input_over:
                return grpc.aio.EOF
            if self.over:
                raise grpc.aio.InternalError("the call is over")
            self._reader = self.connection.loop.create_future()
            await self._reader
        raw = self._arrived.popleft()
        self.was_read(raw)
        return raw if self._deserializer is None else self._deserializer(raw)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            request = await self.read()
            if request is grpc.aio.EOF:
                return
            yield request

    async def write(self, message: Any) -> None:
        """Sends a message; returns once the windows have taken it."""
        self.send(message if self._serializer is None else self._serializer(message))
        if self.pending:
            await self.drained()

    def send(self, raw: bytes) -> None:
        """Sends a serialised message now, or keeps it until the windows take it."""
        if self.over:
            raise grpc.aio.InternalError("the call is over")
        if not self._answering:
            self._answer(())
        self.connection.outgoing.message(self, raw)

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Sends the headers of the answer, once."""
        if self._answering:
            raise grpc.aio.UsageError("the initial metadata was sent already")
        if self.over:
            raise grpc.aio.InternalError("the call is over")
        self._answer(tuple(metadata))

    def _answer(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        block = _ANSWER + headers.block(metadata)
        self._answering = True
        self.connection.outgoing.raw(self._headers(block, end=False))

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        """Ends the call with this status. Raises AbortError, which must not be swallowed."""
        if code is grpc.StatusCode.OK:
            code = grpc.StatusCode.UNKNOWN
        self._code, self._details = code, details
        self._trailing += tuple(trailing_metadata)
        self.finish(code, details)
        raise grpc.aio.AbortError("the call was aborted by its handler")

    async def abort_with_status(self, status: grpc.Status) -> None:
        """As `abort`, with the parts of a rich status."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def invocation_metadata(self) -> headers.Metadata:
        """What the caller sent beside the request."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None without one."""
        if self._deadline is None:
            return None
        return max(self._deadline - self.connection.loop.time(), 0.0)

    def peer(self) -> str:
        """The caller's address in gRPC's spelling."""
        return self.connection.peer

    def peer_identities(self) -> tuple[str, ...]:
        """The DNS names in the caller's verified certificate; none without one."""
        return self.connection.peer_identities

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Sent with the status."""
        self._trailing = tuple(metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status of a handler that returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The message of the status."""
        self._details = details

    def code(self) -> Any:
        """The status so far."""
        return self._code

    def details(self) -> str:
        """The message so far."""
        return self._details

    def cancelled(self) -> bool:
        """Whether the call ended without its handler's doing."""
        return self.over and self._code is None

    def done(self) -> bool:
        """Whether the call is over."""
        return self.over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called with this context once the call is over, at once if it is."""
        if self.over:
            callback(self)
        else:
            self._done.append(callback)

    # The end

    def finish(self, code: Any = None, details: str = "") -> None:
        """Sends the status, once; what waits to be sent goes before it."""
        if self.over:
            return
        self._code = code = code or self._code or grpc.StatusCode.OK
        if code is grpc.StatusCode.OK and not self._trailing and not self._details:
            block = _OK
        else:
            block = self._status(code, details or self._details)
        if not self._answering:
            block = _ANSWER + block
        tail = self._headers(block, end=True)
        self._ended()
        self.end_with(tail)

    def _status(self, code: grpc.StatusCode, text: str) -> bytes:
        block = headers.literal("grpc-status", str(code.value[0]))
        if text:
            block += headers.literal("grpc-message", headers.spelled_message(text))
        try:
            return block + headers.block(self._trailing)
        except ValueError:
            # The status must leave in any case.
            _log.exception("trailing metadata cannot be sent", extra={"method": self.method})
            return block

    def tail_sent(self) -> None:
        if self.input_over and self.task is not None:
            # A refusal without data is an answer, too: the peer may widen its windows for it.
            self.connection.answered()
        if not self.input_over:
            # Whatever the caller still sends is of no use.
            self.connection.outgoing.raw(h2.reset(self.number, Code.NO_ERROR))
        self.stop_reading()
        self.connection.forget(self)

    def _headers(self, block: bytes, *, end: bool) -> bytes:
        return h2.headers(self.number, block, end_stream=end)

    def _ended(self) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        self.begin = None
        self._wake()
        callbacks, self._done = self._done, []
        for callback in callbacks:
            callback(self)
