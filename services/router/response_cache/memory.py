"""Kept answers in the memory of one process, the least recently used ones leaving first."""

from __future__ import annotations

from collections import OrderedDict

from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey

OVERHEAD_BYTES = 512
"""What keeping an entry takes besides its chunk: objects, key, place in the order."""


class MemoryTier:
    """At most `limit` bytes, overhead included; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[AnswerKey, Entry] = OrderedDict()
        self.held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: AnswerKey) -> Entry | None:
        """The entry of a key, which is now the one used last."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: AnswerKey, entry: Entry) -> None:
        """Keeps an entry, unless it alone is too large."""
        self.discard(key)
        size = entry.size + OVERHEAD_BYTES
        if size > self._limit:
            return
        self._entries[key] = entry
        self.held += size
        while self.held > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self.held -= oldest.size + OVERHEAD_BYTES

    def discard(self, key: AnswerKey) -> None:
        """Forgets an entry, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held -= entry.size + OVERHEAD_BYTES
