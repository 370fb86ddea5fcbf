"""What the prefix caches of all engines in a process hold, as one log for its sessions. Pure.

Blocks are named for a model (chassis/prompt_blocks.py), so that what one model holds is never taken
for another's. A model that is being replaced has the same names as the one that replaces it: a name
is held while any of them holds it.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.chassis.prefix_log import NAMES_A_MESSAGE, PrefixLog


class _Part:
    """How far one engine's log has been followed, and what it held by then."""

    __slots__ = ("at", "held", "log")

    def __init__(self, log: PrefixLog) -> None:
        self.log = log
        self.at = -1
        self.held: set[int] = set()


class JointPrefixLog(PrefixLog):
    """Follows the logs of engines when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[_Part] = []
        self._counts: dict[int, int] = {}

    @property
    def end(self) -> int:
        """Number of the change that comes next."""
        for part in self._parts:
            if part.at != part.log.end:
                self._follow(part)
        return super().end

    def held(self) -> tuple[int, ...]:
        """Every name that is held, the latest last."""
        _ = self.end
        return super().held()

    def add(self, log: PrefixLog) -> None:
        """One more engine's."""
        self._parts.append(_Part(log))

    def discard(self, log: PrefixLog) -> None:
        """The engine is gone, and with it what it held."""
        for part in [part for part in self._parts if part.log is log]:
            self._parts.remove(part)
            self._release(tuple(part.held), part)

    def _follow(self, part: _Part) -> None:
        log = part.log
        if part.at < log.begin:
            held = log.held()
            self._release(part.held.difference(held), part)
            self._hold(held, part)
            part.at = log.end
            return
        while part.at < log.end:
            changes = dict(log.changes(part.at, NAMES_A_MESSAGE))
            part.at = min(part.at + NAMES_A_MESSAGE, log.end)
            self._hold((name for name, stored in changes.items() if stored), part)
            self._release([name for name, stored in changes.items() if not stored], part)

    def _hold(self, names: Iterable[int], part: _Part) -> None:
        for name in names:
            if name not in part.held:
                part.held.add(name)
                self._counts[name] = self._counts.get(name, 0) + 1
                self.stored(name)

    def _release(self, names: Iterable[int], part: _Part) -> None:
        for name in tuple(names):
            if name in part.held:
                part.held.discard(name)
                left = self._counts.pop(name) - 1
                if left:
                    self._counts[name] = left
                else:
                    self.removed(name)
