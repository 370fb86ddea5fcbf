"""Key and value pairs in memory, shared by everything in the process that opens the same name.

For tests and for clusters in one process; nothing outlives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from services.chassis.registry.key_values import Entry


class Shelf:
    """What the stores of one process share."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._writes = 0
        self._changed = asyncio.Event()

    def write(self, key: str, value: bytes | None) -> None:
        """Writes a value; None removes it."""
        self._writes += 1
        self.entries[key] = Entry() if value is None else Entry(value, self._writes)
        self.wake()

    def wake(self) -> None:
        """Makes every watcher look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Waits for a write."""
        await self._changed.wait()


# Weak: a shelf lives as long as a store uses it, so tests share nothing by accident.
_shelves: WeakValueDictionary[str, Shelf] = WeakValueDictionary()


def shelf(name: str) -> Shelf:
    """The shelf of that name in this process, made when first asked for."""
    found = _shelves.get(name)
    if found is None:
        found = _shelves[name] = Shelf()
    return found


class MemoryKeyValues:
    """One process's view of a shared shelf."""

    def __init__(self, shared: Shelf) -> None:
        self._shared = shared
        self._closed = False

    async def get(self, key: str) -> Entry:
        return self._shared.entries.get(key, Entry())

    async def put(self, key: str, value: bytes, index: int) -> bool:
        if (await self.get(key)).index != index:
            return False
        self._shared.write(key, value)
        return True

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        shown: Entry | None = None
        while not self._closed:
            present = await self.get(key)
            if present != shown:
                shown = present
                yield present
            else:
                await self._shared.change()

    async def close(self) -> None:
        self._closed = True
        self._shared.wake()
