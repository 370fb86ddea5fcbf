"""Turns at something of which few can be had at once, fair to tenants. Knows nothing of images."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class FairTurns:
    """So many turns at once; first come, first served within a key, and the keys by turns.

    Used on one event loop. At most `most` wait, `most_of_one` of one key.
    """

    def __init__(self, at_once: int, most: int, most_of_one: int) -> None:
        self._free = at_once
        self._most, self._most_of_one = most, most_of_one
        self._keys: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def waiting(self, key: str | None = None) -> int:
        """How many wait, in all or of one key."""
        if key is not None:
            return len(self._keys.get(key, ()))
        return sum(map(len, self._keys.values()))

    def has_room(self, key: str) -> bool:
        """Whether one more of the key may wait."""
        return self.waiting() < self._most and self.waiting(key) < self._most_of_one

    async def take(self, key: str) -> None:
        """Returns with a turn, which `give_back` ends."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keys.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                self._forget(key, turn)
            raise

    def give_back(self) -> None:
        """Ends a turn: the next key's first has it."""
        while self._keys:
            key, turns = self._keys.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._keys[key] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, key: str, turn: asyncio.Future[None]) -> None:
        turns = self._keys.get(key)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._keys[key]
