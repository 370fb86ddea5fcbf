"""What a backend's prefix cache holds, by the names of prompt blocks, and what changed in it. Pure.

One `PrefixLog` a backend, and for each session that hears of it a `PrefixReader`, which remembers
how far that session has got. What the names mean is prompt_blocks.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from anabranch.v1 import session_pb2

NAMES_A_MESSAGE = 4096
MOST_CHANGES = 32_768
"""Changes that are remembered; a session that is further behind begins again."""
MOST_NAMES = 65_536
"""Names that a session which begins is told of, the latest: 16 MiB of prompts."""


class PrefixLog:
    """The names that are held now, and the latest changes."""

    def __init__(self, most_changes: int = MOST_CHANGES) -> None:
        self._most_changes = most_changes
        self._held: dict[int, None] = {}
        self._changes: list[tuple[int, bool]] = []
        self.begin = 0
        """Number of the first change that is remembered."""

    @property
    def end(self) -> int:
        """Number of the change that comes next."""
        return self.begin + len(self._changes)

    def held(self) -> tuple[int, ...]:
        """Every name that is held, the latest last."""
        return tuple(self._held)

    def stored(self, name: int) -> None:
        """The cache holds this block now, and all before it."""
        if name not in self._held:
            self._held[name] = None
            self._add(name, True)

    def removed(self, name: int) -> None:
        """The cache holds this block no more."""
        if name in self._held:
            del self._held[name]
            self._add(name, False)

    def clear(self) -> None:
        """The cache holds nothing, and what was said of it is void."""
        self._held.clear()
        self.begin = self.end + 1
        self._changes.clear()

    def changes(self, start: int, most: int) -> Iterable[tuple[int, bool]]:
        """Names with whether they were stored, from the change of that number on."""
        first = start - self.begin
        return islice(self._changes, first, first + most) if first >= 0 else ()

    def _add(self, name: int, stored: bool) -> None:
        self._changes.append((name, stored))
        # Seldom, since it moves what is left.
        if len(self._changes) >= 2 * self._most_changes:
            del self._changes[: self._most_changes]
            self.begin += self._most_changes


class PrefixReader:
    """One session's way through a log. What it is told, in order, makes up what is held."""

    __slots__ = ("_at", "_log", "_untold")

    def __init__(self, log: PrefixLog) -> None:
        self._log = log
        self._at = -1
        self._untold: tuple[int, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether there is anything to tell."""
        return self._at != self._log.end or bool(self._untold)

    def next(self, most: int = NAMES_A_MESSAGE) -> session_pb2.PrefixCacheEvents | None:
        """What to tell next, at most so many names of it; None when all has been told."""
        if not self.waits:
            return None
        log = self._log
        events = session_pb2.PrefixCacheEvents()
        if self._at < log.begin:
            # New, or too far behind: it is told what is held, and then of changes since now.
            events.cleared = True
            self._at = log.end
            self._untold = log.held()[-MOST_NAMES:]
        if self._untold:
            events.stored.extend(self._untold[:most])
            self._untold = self._untold[most:]
            return events
        # The lists of a message have no order between them: the last change of a name counts.
        changed = dict(log.changes(self._at, most))
        self._at = min(self._at + most, log.end)
        events.stored.extend(name for name, stored in changed.items() if stored)
        events.removed.extend(name for name, stored in changed.items() if not stored)
        return events
