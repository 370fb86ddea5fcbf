"""One request on its way: what is still to be sent of it and what has arrived for it.

Fed by whichever session carries it, read by one consumer. Decodes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from google.protobuf.duration_pb2 import Duration

from anabranch.errors import AnabranchError, Work, error_for
from anabranch.spans import RequestSpan
from anabranch.v1 import generation_pb2

# How much longer than a request's own time its caller waits: the service's answer to an
# expired deadline says more than the caller's own could, so it goes first.
DEADLINE_GRACE = 0.5


CANCELLED = error_for("CANCELLED", "the caller left", grpc.StatusCode.CANCELLED)
"""How a request ends for its trace that its caller gave up."""


class Inflight:
    """A request with the undecoded chunks that nobody has taken yet.

    The buffer is bounded in bytes: one reader that stalls must neither fill the memory nor
    hold up the other requests of its session. Past the bound the request is cancelled, and
    the reader gets what was buffered, then SlowReaderError.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_loop",
        "_max_buffered",
        "_over",
        "_request",
        "_timer",
        "_waiter",
        "attempts",
        "deadline",
        "dispatched",
        "error",
        "heard",
        "lost_at",
        "on_abandon",
        "reauthorized",
        "sent",
        "span",
        "tokens",
        "traceparent",
        "wire",
    )

    def __init__(
        self,
        request: generation_pb2.GenerateRequest,
        *,
        timeout: float,
        max_buffered_bytes: int,
        traceparent: str = "",
        span: RequestSpan | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        self.wire = request.SerializeToString()
        self.span = span
        self.traceparent = traceparent if span is None else span.traceparent
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._max_buffered = max_buffered_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self.error: AnabranchError | None = None
        self.on_abandon: Callable[[], None] | None = None
        """Set by the session that carries it: tells the service that nobody wants it."""
        self.attempts = 0
        self.reauthorized = False
        """Whether it has been repeated because its credential was refused."""
        self.lost_at: float | None = None
        """Loop time at which a session was first lost under it."""
        self.dispatched = False
        """Whether any session has sent it."""
        self.sent = False
        """Whether the session that carries it now has sent it."""
        self.heard = False
        """Whether any output has arrived."""
        self.tokens = 0
        self.deadline = self._loop.time() + timeout
        self._timer = self._loop.call_at(self.deadline + DEADLINE_GRACE, self._expire)

    @property
    def over(self) -> bool:
        """Whether nothing more will arrive."""
        return self._over

    def payload(self) -> bytes:
        """The serialised request, on a later attempt with the time that is left."""
        if self.attempts > 1:
            left = max(0.001, self.deadline - self._loop.time())
            whole = int(left)
            self._request.timeout.CopyFrom(Duration(seconds=whole, nanos=int((left - whole) * 1e9)))
            return self._request.SerializeToString()
        return self.wire

    def feed(self, raw: bytes, *, last: bool, tokens: int) -> None:
        """Takes a chunk that arrived."""
        if self._over:
            return
        if not self.heard and self.span is not None:
            self.span.event("anabranch.first_token", {})
        self.heard = True
        self.tokens += tokens
        if self._buffered + len(raw) > self._max_buffered:
            self._release()
            self.fail(
                error_for(
                    "SLOW_READER",
                    f"more than {self._max_buffered} bytes wait to be read",
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    work=Work.OUTPUT_SEEN,
                    metadata={"tokens_delivered": str(self.tokens)},
                )
            )
            return
        self._buffer.append(raw)
        self._buffered += len(raw)
        if last:
            self._end()
        self._wake()

    def attempted(self) -> None:
        """A session takes it, or another one after that."""
        self.attempts += 1
        self.sent = False
        if self.span is not None and self.attempts > 1:
            self.span.event("anabranch.attempt", {"anabranch.attempt": self.attempts})

    def fail(self, error: AnabranchError) -> None:
        """Ends it with an error, to be raised after what is buffered has been taken."""
        if not self._over:
            self.error = error
            self._end()
            self._wake()

    def abandon(self) -> None:
        """Tells the service that nobody wants the rest. Safe to call at any time, repeatedly."""
        self._release()
        self._end(cancelled=True)
        self._wake()

    async def take(self) -> list[bytes]:
        """Waits for chunks and takes all there are; an empty list is the end.

        Raises the AnabranchError that ended the request.
        """
        while not self._buffer:
            if self._over:
                if self.error is not None:
                    raise self.error
                return []
            self._waiter = self._loop.create_future()
            await self._waiter
        taken, self._buffer, self._buffered = self._buffer, [], 0
        return taken

    def _end(self, *, cancelled: bool = False) -> None:
        if not self._over and self.span is not None:
            error = CANCELLED if cancelled else self.error
            told = {"gen_ai.usage.output_tokens": self.tokens, "anabranch.attempts": self.attempts}
            self.span.end(error, told)
        self._over = True
        self._timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _release(self) -> None:
        if self.on_abandon is not None:
            self.on_abandon()
            self.on_abandon = None

    def _expire(self) -> None:
        if self._over:
            return
        work = Work.MAYBE_BILLED if self.dispatched else Work.NOT_DISPATCHED
        self._release()
        self.fail(
            error_for(
                "DEADLINE_EXCEEDED",
                "the request's time ran out",
                grpc.StatusCode.DEADLINE_EXCEEDED,
                work=Work.OUTPUT_SEEN if self.heard else work,
                metadata={"tokens_delivered": str(self.tokens)},
            )
        )
