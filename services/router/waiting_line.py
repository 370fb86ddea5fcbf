"""Requests that wait for capacity: one line a model, decided again whenever a backend changes.

Who joins, goes first and is shed is core's (line.py); this is its shell: it keeps the clock, asks
each request to try again, and tells those who are shed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from enum import Enum, auto
from math import inf
from typing import NamedTuple, Protocol

from services.chassis.errors import Fault
from services.router import refusals
from services.router.core.admission import Seats, codel_target
from services.router.core.decide import PATIENCE_S
from services.router.core.line import Line, Refused
from services.router.core.policy import AdmissionRules, Objective, PriorityClass
from services.router.receivers import end_for_bug

# One who waits in vain, and those who want the same, are asked again with the next change; so
# many at most, for requests with limits of their own are all different.
_IN_VAIN = 32


class Turn(Enum):
    """What became of a request whose turn it was."""

    WAITS = auto()
    SERVED = auto()
    REFUSED = auto()


class Waiter(Hashable, Protocol):
    """A request in the line."""

    @property
    def claim(self) -> Hashable:
        """What it waits for; equal claims are decided alike."""

    def retry_now(self) -> Turn:
        """Decides again, and acts on it."""

    def shed(self, fault: Fault) -> None:
        """It has been taken out of the line, unserved, for this reason."""

    def on_bug(self, fault: Fault) -> None:
        """Something of ours went wrong while it was asked or told; it ends."""


class _Place(NamedTuple):
    line: Line[Waiter]
    by_deadline: bool


class WaitingLine:
    """The lines of one router process."""

    def __init__(self, rules: Callable[[], AdmissionRules], clock: Callable[[], float]) -> None:
        self._read_rules = rules
        self._rules = rules()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._seats = Seats(self._rules)
        self._lines: dict[str, Line[Waiter]] = {}
        self._waiters: dict[Waiter, _Place] = {}
        self._serving = False
        self._passed = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    def waiting(self, klass: PriorityClass) -> int:
        """How many of a class wait."""
        return sum(line.waiting(klass) for line in self._lines.values())

    def expected_wait(self, model: str, klass: PriorityClass) -> float:
        """Seconds after which one that joins now would be served; 0 when nobody waits."""
        line = self._lines.get(model)
        return 0.0 if line is None else line.expected_wait(klass, self._clock())

    def join(
        self,
        waiter: Waiter,
        model: str,
        klass: PriorityClass,
        left: float,
        limit: float | None,
        objective: Objective | None,
    ) -> Fault | None:
        """Puts a request into its model's line, or says why it may not wait there.

        It may wait until it has no time `left` at all, and no longer than its own `limit` for the
        first token; both in seconds. One without an `objective` waits by choice, and leaves by
        itself in time: it makes no standing line, and is not shed for one.
        """
        rules = self._read_rules()
        if rules is not self._rules:
            self._rules = rules
            self._seats.set_rules(rules)
            for known in self._lines.values():
                known.set_rules(rules)
        line = self._lines.get(model)
        if line is None:
            # Only for a model that somebody serves, so there are few.
            line = self._lines[model] = Line(rules, self._seats)
        now = self._clock()
        by_deadline = limit is None or left < limit
        latest = now + (left if limit is None else min(left, limit))
        # Nobody is there whom a standing line of batch work could make wait.
        patient = klass is PriorityClass.BATCH and rules.codel_target is None
        target = inf if patient or objective is None else codel_target(rules, objective)
        outcome = line.join(waiter, klass, now, latest, target)
        if isinstance(outcome, Refused):
            return refusals.kept_out(outcome.reason, outcome.retry_after, by_deadline=by_deadline)
        self._waiters[waiter] = _Place(line, by_deadline)
        self._look_again()
        return None

    def ahead_of(self, model: str, klass: PriorityClass) -> int:
        """So many would be served before one that joins now; while the line is asked in turn, those
        whose turn was before and who wait still."""
        if self._serving:
            return self._passed
        line = self._lines.get(model)
        return line.ahead(klass) if line is not None and len(line) else 0

    def leave(self, waiter: Waiter) -> None:
        """Takes a request out of the line, unserved."""
        place = self._waiters.pop(waiter, None)
        if place is not None:
            place.line.leave(waiter)
            if not self._waiters:
                self.close()

    def changed(self) -> None:
        """A backend changed, or time passed: whoever waits decides again, in order."""
        if self._serving or not self._waiters:
            return
        self._serving = True
        try:
            for line in tuple(self._lines.values()):
                self._serve(line)
        finally:
            self._serving = False
        self._look_again()

    def close(self) -> None:
        """Looks no more; nobody is told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self, line: Line[Waiter]) -> None:
        now = self._clock()
        for waiter, reason in line.shed(now):
            place = self._waiters.pop(waiter, None)
            if place is None:
                continue  # it left while others were told
            wait = line.expected_wait(PriorityClass.INTERACTIVE, now)
            try:
                waiter.shed(refusals.kept_out(reason, wait, by_deadline=place.by_deadline))
            except Exception as exc:  # noqa: BLE001 - the others' turns come all the same
                end_for_bug(waiter, exc)
        in_vain: set[Hashable] = set()
        self._passed = 0
        for waiter in line.in_order(now):
            claim = waiter.claim
            if claim in in_vain:
                self._passed += 1
                continue
            try:
                turn = waiter.retry_now()
            except Exception as exc:  # noqa: BLE001 - the others' turns come all the same
                turn = Turn.REFUSED
                end_for_bug(waiter, exc)
            if turn is Turn.WAITS:
                self._passed += 1
                in_vain.add(claim)
                if len(in_vain) >= _IN_VAIN:
                    break
                continue
            self._waiters.pop(waiter, None)
            if turn is Turn.SERVED:
                line.serve(waiter, now)
            else:
                line.leave(waiter)

    def _look_again(self) -> None:
        """Sets the timer: sheddings are due at their times, and nobody is left to a silent pool."""
        if not self._waiters:
            self.close()
            return
        now = self._clock()
        at = min((line.next_shed(now) for line in self._lines.values()), default=inf)
        delay = min(max(at - now, 0.001), PATIENCE_S)
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + delay:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.changed()
        self._look_again()
