"""The one background event loop that all blocking clients of a process share.

gRPC's asyncio support polls badly with several loops in one process, so there is never more
than one of them here. It starts with the first client and ends with the last.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class LoopThread:
    """A counted share in the loop; release it exactly once, with `release`."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _shares: ClassVar[int] = 0
    _loop: ClassVar[asyncio.AbstractEventLoop | None] = None
    _thread: ClassVar[threading.Thread | None] = None

    def __init__(self) -> None:
        cls = type(self)
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                cls._thread = threading.Thread(
                    target=_serve, args=(cls._loop,), name="anabranch-loop", daemon=True
                )
                cls._thread.start()
            cls._shares += 1
            self._mine: asyncio.AbstractEventLoop | None = cls._loop

    @property
    def released(self) -> bool:
        """Whether this share has been given back."""
        return self._mine is None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for it.

        An interrupt of the waiting thread (Ctrl-C) cancels it. Raises RuntimeError inside a
        running event loop, which would be blocked.
        """
        if self._mine is None:
            work.close()
            raise RuntimeError("the client is closed")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise RuntimeError("use AsyncClient inside an event loop; Client would block it")
        future = asyncio.run_coroutine_threadsafe(work, self._mine)
        try:
            return future.result()
        finally:
            future.cancel()

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function on the loop soon, without waiting; nothing after release."""
        if self._mine is not None:
            self._mine.call_soon_threadsafe(function)

    def release(self) -> None:
        """Gives the share back; the last one ends the loop and its thread."""
        cls = type(self)
        with cls._lock:
            if self._mine is None:
                return
            loop, self._mine = self._mine, None
            cls._shares -= 1
            if cls._shares:
                return
            thread, cls._loop, cls._thread = cls._thread, None, None
        loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
