"""The load as sessions report it: made once for all that send it after the same step.

What is measured is load_meter.py's, what a report says wire.py's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

from anabranch.v1 import session_pb2
from services.local_engine import wire
from services.local_engine.engine import EngineLoad

_FRESH_S = 0.005  # less than a step: what changes without being said here is seen by then


class Loaded(Protocol):
    """An engine, or several."""

    def load(self) -> EngineLoad:
        """The load now."""


class LoadReports:
    """Makes reports, each with the next number. Whoever changes the load says so in `changed`."""

    def __init__(
        self,
        engine: Loaded,
        *,
        encoding: Callable[[], int],
        draining: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._encoding = encoding
        self._draining = draining
        self._clock = clock
        self._numbers = itertools.count(1)
        self._latest: session_pb2.LoadReport | None = None
        self._made_at = 0.0

    def changed(self) -> None:
        """A request came or went, or had output: what was reported before is not the load now."""
        self._latest = None

    def now(self) -> session_pb2.LoadReport:
        """The load now; requests not yet encoded count as waiting.

        The message is shared: a session writes its own `starts_seen` and copies it.
        """
        now = self._clock()
        report = self._latest
        if report is None or now - self._made_at >= _FRESH_S:
            report = wire.load_report(
                self._engine.load(), sequence=next(self._numbers), draining=self._draining()
            )
            report.waiting += self._encoding()
            self._latest, self._made_at = report, now
        return report
