"""A replica's prefix cache: blocks of prompts; those unused for longest are given up first.

Blocks in use by running sequences stay. A block's name covers all blocks before it, so what is
held of a prompt is a run of names from its first on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks by name. Room is the caller's matter: it says how many unused ones may stay."""

    def __init__(self) -> None:
        self._users: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return len(self._users)

    @property
    def unused(self) -> int:
        """Blocks held in case they are asked for again."""
        return len(self._unused)

    def __contains__(self, name: int) -> bool:
        return name in self._users or name in self._unused

    def held(self, names: Sequence[int]) -> int:
        """How many blocks of a prompt are held, from its first on."""
        count = 0
        for name in names:
            if name not in self:
                break
            count += 1
        return count

    def unused_among(self, names: Sequence[int]) -> int:
        """How many of these blocks would have to be taken from the unused ones."""
        return sum(name in self._unused for name in names)

    def use(self, names: Sequence[int]) -> list[int]:
        """A sequence holds these blocks from now on; returns those that are new."""
        new = []
        for name in names:
            users = self._users.get(name)
            if users is not None:
                self._users[name] = users + 1
                continue
            if name in self._unused:
                del self._unused[name]
            else:
                new.append(name)
            self._users[name] = 1
        return new

    def leave(self, names: Sequence[int]) -> None:
        """A sequence holds them no longer; the last of them are given up first."""
        for name in reversed(names):
            users = self._users[name] - 1
            if users:
                self._users[name] = users
            else:
                del self._users[name]
                self._unused[name] = None

    def keep_at_most(self, blocks: int) -> list[int]:
        """Gives unused blocks up until no more than this many are left; returns their names."""
        gone = []
        while len(self._unused) > max(0, blocks):
            gone.append(self._unused.popitem(last=False)[0])
        return gone
