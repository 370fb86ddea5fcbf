"""What a trail is written to, as the trail sees it, and a thread for sinks that block.

Which sinks there are is not known here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from services.chassis.audit.entry import ChainedEntry
from services.chassis.audit.head import Head

T = TypeVar("T")


class SinkError(Exception):
    """A sink did not take entries; they are given to it again. The text names no secret."""


class Sink(Protocol):
    """One copy of the trail."""

    name: str
    """For logs and metrics, such as "file"."""

    async def append(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        """Keeps the entries, and then the head, if there is one: its entry is the last of these or
        was kept before. Returns once all are safe from a crash.

        Calls follow each other and are never abandoned but at the end of the process. After a
        failure the same entries come again, of which some may have been kept. Raises SinkError or
        OSError.
        """

    async def close(self) -> None:
        """Ends it; nothing is appended any more."""


async def in_thread(work: Callable[[], T], name: str) -> T:
    """Runs what may block for long beside the loop.

    Not in the common pool: what hangs there takes the place of others, and a process that ends
    would wait for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - carried over to whoever waits
            error = exc
        try:
            loop.call_soon_threadsafe(tell, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
