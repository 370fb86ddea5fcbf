"""The end of what a connection just read: there, what many frames ask for is done once.

`call_soon` would do it a round of the loop later. A message that finds the process asleep pays for
that round with caches that are cold again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary


class Turn:
    """One loop's; not for use from threads."""

    __slots__ = ("__weakref__", "_call_soon", "_due", "_reading")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._due: list[Callable[[], None]] = []
        self._reading = False

    def soon(self, call: Callable[[], None]) -> None:
        """Calls at the end of the reading that is going on, or else in the loop's next round."""
        if self._reading:
            self._due.append(call)
        else:
            self._call_soon(call)

    def begin(self) -> None:
        """A connection handles what it read."""
        self._reading = True

    def end(self) -> None:
        """It has handled it."""
        self._reading = False
        if self._due:
            due, self._due = self._due, []
            for call in due:
                call()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    """The loop's one."""
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = Turn(loop)
    return turn


class Soon:
    """Calls once, soon, however often it is set before."""

    __slots__ = ("_call", "_set", "_turn")

    def __init__(self, call: Callable[[], None], turn: Turn) -> None:
        self._call = call
        self._turn = turn
        self._set = False

    def set(self) -> None:
        """Asks for the call."""
        if not self._set:
            self._set = True
            self._turn.soon(self._run)

    def _run(self) -> None:
        self._set = False
        self._call()
