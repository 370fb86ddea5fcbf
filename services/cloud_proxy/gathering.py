"""Lets the output of many requests leave together, as that of an engine's step does.

Providers' chunks arrive one by one, each in a turn of the loop of its own, and most of what such a
chunk costs is the message that carries it, here and at the router. So it waits for a few
milliseconds for others, while enough requests run for others to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_WORTH_FROM = 4
"""Requests from which on waiting joins enough to be worth it."""


class Gathering:
    """One process's. `seconds` is how long output waits at most; 0: not at all.

    `running` says how many requests there are.
    """

    def __init__(self, seconds: float, running: Callable[[], int]) -> None:
        self._seconds = seconds
        self._running = running
        self._waiting: list[Callable[[], None]] = []

    @property
    def worth(self) -> bool:
        """Whether output should wait now."""
        return self._seconds > 0 and self._running() >= _WORTH_FROM

    def later(self, flush: Callable[[], None]) -> None:
        """Calls `flush` when the time is over, with all others that wait by then."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(self._seconds, self._flush)
        self._waiting.append(flush)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for flush in waiting:
            flush()
