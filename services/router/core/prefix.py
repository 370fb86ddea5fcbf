"""Which beginnings of prompts the backends' prefix caches are thought to hold.

Blocks are named by chain hashes (64-bit), so a name stands for everything up to it. What a backend
was sent is taken as held, the least recently used leave first; backends that send events are
believed instead. Only hints: a wrong one costs a prefill, never an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

TOKENS_PER_BLOCK = 64
"""256 bytes of text, at four bytes a token."""

_NOBODY: dict[str, int] = {}
_NO_ONE: AbstractSet[str] = frozenset()


class PrefixIndex:
    """Blocks by backend and backends by block. `capacity` is the blocks remembered of each."""

    def __init__(self, capacity: int = 16_384) -> None:
        self.capacity = capacity
        self._held: dict[str, OrderedDict[int, None]] = {}
        self._holders: dict[int, set[str]] = {}
        self._reporting: set[str] = set()

    def count(self, backend: str) -> int:
        """Blocks thought to be held there."""
        held = self._held.get(backend)
        return 0 if held is None else len(held)

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """Leading blocks of a prompt that each backend holds; backends without any are left out.

        Caches hold what comes before whatever they hold, so depths are found by bisection: for all
        backends at once, parted wherever some hold a block and others do not.
        """
        holders = self._holders.get(blocks[0]) if blocks else None
        if not holders:
            return _NOBODY
        found: dict[str, int] = {}
        # Who holds the first so many, and how many they may hold at most.
        groups: list[tuple[AbstractSet[str], int, int]] = [(holders, 1, len(blocks))]
        while groups:
            group, low, high = groups.pop()
            while low < high:
                middle = (low + high + 1) // 2
                deeper = group & self._holders.get(blocks[middle - 1], _NO_ONE)
                if not deeper:
                    high = middle - 1
                    continue
                if len(deeper) < len(group):
                    groups.append((group - deeper, low, middle - 1))
                    group = deeper
                low = middle
            for backend in group:
                found[backend] = low
        return found

    def sent(self, backend: str, blocks: Sequence[int]) -> None:
        """A prompt went there: its blocks will be held, unless the backend tells itself."""
        if blocks and backend not in self._reporting:
            self._add(backend, blocks)

    def reports(self, backend: str) -> None:
        """From now on the backend tells what it holds; what was assumed is forgotten."""
        self.forget(backend)
        self._reporting.add(backend)

    def stored(self, backend: str, blocks: Sequence[int]) -> None:
        """The backend holds these, in order of prompts."""
        self._add(backend, blocks)

    def removed(self, backend: str, blocks: Iterable[int]) -> None:
        """The backend no longer holds these."""
        held = self._held.get(backend)
        if held is not None:
            for block in blocks:
                if block in held:
                    del held[block]
                    self._unlist(backend, block)

    def cleared(self, backend: str) -> None:
        """The backend holds nothing."""
        for block in self._held.pop(backend, ()):
            self._unlist(backend, block)

    def forget(self, backend: str) -> None:
        """The backend is gone, or begins anew."""
        self.cleared(backend)
        self._reporting.discard(backend)

    def _add(self, backend: str, blocks: Sequence[int]) -> None:
        held = self._held.setdefault(backend, OrderedDict())
        # Deepest first: what is shared by many prompts is then the last to leave.
        for block in reversed(blocks):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                self._holders.setdefault(block, set()).add(backend)
        while len(held) > self.capacity:
            block, _ = held.popitem(last=False)
            self._unlist(backend, block)

    def _unlist(self, backend: str, block: int) -> None:
        holders = self._holders.get(block)
        if holders is not None:
            holders.discard(backend)
            if not holders:
                del self._holders[block]


def cached_tokens(blocks: int, prompt_tokens: int) -> int:
    """Tokens of a prompt that so many leading blocks save; at least one is always computed."""
    return min(blocks * TOKENS_PER_BLOCK, prompt_tokens - 1) if blocks else 0
