"""Writes messages to a caller, who may have stopped reading or be gone. Buffers nothing."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work


def reads_too_slowly(message: str) -> Fault:
    """RESOURCE_EXHAUSTED for a caller whose output piles up here."""
    return Fault(errors_pb2.ERROR_REASON_SLOW_READER, message, work=Work.OUTPUT_SEEN)


def caller_left() -> Fault:
    """CANCELLED for a caller whose connection is gone, or who has hung up."""
    return Fault(errors_pb2.ERROR_REASON_CANCELLED, "the caller has left", work=Work.OUTPUT_SEEN)


class CallerWrites:
    """The writes of one call, made by the task that entered it.

    One timer watches all of them: a timeout of its own for each write would cost
    more than a write that the transport takes at once.
    """

    __slots__ = (
        "_cancelling",
        "_context",
        "_loop",
        "_since",
        "_stall",
        "_stalled",
        "_task",
        "_timer",
    )

    def __init__(self, context: grpc.aio.ServicerContext, *, stall: float) -> None:
        self._context = context
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._since: float | None = None
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def write(self, message: Any) -> None:
        """Returns once the transport has taken the message.

        Raises Fault SLOW_READER when it takes none for `stall` seconds, and CANCELLED
        when the caller is gone.
        """
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + self._stall, self._look)
        try:
            await self._context.write(message)
        except asyncio.CancelledError as exc:
            assert self._task is not None
            # Whoever else wants this task to end goes first.
            if not self._stalled or self._task.uncancel() > self._cancelling:
                raise
            raise reads_too_slowly(f"nothing was read for {self._stall:g} s") from exc
        except grpc.aio.InternalError as exc:
            raise caller_left() from exc
        finally:
            self._since = None

    def _look(self) -> None:
        """Ends the write that goes on for too long; comes back when the present one would."""
        self._timer = None
        if self._since is None or self._task is None:
            return
        if self._loop.time() < self._since + self._stall:
            self._timer = self._loop.call_at(self._since + self._stall, self._look)
            return
        self._stalled = True
        self._task.cancel()
