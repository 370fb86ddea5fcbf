"""Adapters of the simulation: each gives other answers, none is read. For tests only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol


class AdapterLimits(Protocol):
    """What the simulation's options say of adapters."""

    @property
    def max_adapters(self) -> int: ...

    @property
    def max_adapter_rank(self) -> int: ...


class SimAdapters:
    """Remembers which adapters there are."""

    def __init__(self, limits: AdapterLimits) -> None:
        self._limits = limits
        self.loaded: dict[str, Path] = {}

    @property
    def most(self) -> int:
        """How many may be loaded."""
        return self._limits.max_adapters

    @property
    def most_rank(self) -> int:
        """The largest rank that is taken."""
        return self._limits.max_adapter_rank

    async def load(self, key: str, directory: Path) -> None:
        """Pretends to."""
        self.loaded[key] = directory

    async def unload(self, key: str) -> None:
        """Pretends to."""
        self.loaded.pop(key, None)


def adapter_seed(key: str) -> int:
    """What an adapter adds to the seed of an answer; 0 without one. Only its name counts."""
    name = key.partition("#")[0]
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) if name else 0
