"""How many calls were begun and how they ended: of one server, or of one of its connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """`last_started` is on the loop's clock, None before there was any."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    last_started: float | None = None

    def begin(self, now: float) -> None:
        """One more."""
        self.started += 1
        self.last_started = now

    def end(self, *, well: bool) -> None:
        """One is over."""
        if well:
            self.succeeded += 1
        else:
            self.failed += 1
