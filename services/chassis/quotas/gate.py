"""Quotas of requests and tokens, as a process asks for them: reserved, then settled or released.

With Redis all processes count together. Without it, and while it does not answer, each lets its
part of every quota through. Money is budgets' (chassis/budgets); what a request is estimated at
and when it is settled is metered.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Counter, Meter, Observation
from redis.asyncio import Redis

from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.quotas import gcra
from services.chassis.quotas.gcra import Buckets
from services.chassis.quotas.redis_buckets import Known, RedisBuckets, Take, Taken
from services.chassis.quotas.reservations import (
    Corrections,
    Counted,
    Reservation,
    charges,
    counted_under,
    exceeded,
)
from services.chassis.quotas.shared_buckets import SharedBuckets

PREFIX = "anabranch:quota:"
"""Of the keys in Redis, the same for all processes."""

_MOST_UNTOLD = 10_000

Decided: TypeAlias = Callable[[Reservation | Fault], None]
"""Told once: what was reserved, or Fault QUOTA_EXCEEDED."""


class QuotaGate:
    """The quotas of one process. `run` works beside it.

    `processes` is how many share every quota, `clock` counts seconds and never goes back.
    """

    def __init__(
        self,
        redis: Redis | None = None,
        processes: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._clock = clock
        # A copy of what Redis knows as well: there is no fresh burst for each outage.
        self._own = Buckets()
        # What was let through while Redis was away, since it was last looked for.
        self._untold: dict[str, tuple[int, int]] = {}
        self._redis: SharedBuckets | None = None
        if redis is not None:
            self._redis = SharedBuckets(RedisBuckets(redis, prefix=PREFIX))
        self._refused: Counter | None = None

    def ask(self, principal: Principal, model: str, tokens: int, decided: Decided) -> None:
        """Reserves one request, of about so many tokens; without Redis, before it returns.

        More than a burst is never reserved: what is used beyond it is debt.
        """
        counted = counted_under(principal, model, tokens)
        if self._redis is None or not counted:
            decided(self.take_own(counted))
            return
        asked = _Asked(self, counted, decided)
        if not self._redis.answers:
            asked.decide(None)
            asked.learn(None)
            return
        known = tuple([self._known(each.key) for each in counted])
        self._redis.ask(Take(charges(counted), known), asked)

    async def reserve(self, principal: Principal, model: str, tokens: int) -> Reservation:
        """As `ask`. Raises Fault QUOTA_EXCEEDED."""
        found: asyncio.Future[Reservation | Fault] = asyncio.get_running_loop().create_future()

        def decided(outcome: Reservation | Fault) -> None:
            if not found.cancelled():
                found.set_result(outcome)
            elif isinstance(outcome, Reservation):
                self.release(outcome)

        self.ask(principal, model, tokens, decided)
        try:
            outcome = await found
        except asyncio.CancelledError:
            if not found.cancelled():
                decided_meanwhile = found.result()
                if isinstance(decided_meanwhile, Reservation):
                    self.release(decided_meanwhile)
            raise
        if isinstance(outcome, Fault):
            raise outcome
        return outcome

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """The request used so many tokens."""
        self.correct(reservation.end(tokens), shared=reservation.shared)

    def release(self, reservation: Reservation) -> None:
        """Nothing ran: neither the request nor its tokens count."""
        self.correct(reservation.end(None), shared=reservation.shared)

    async def run(self) -> None:
        """Asks Redis for this process until cancelled; without Redis there is nothing to do."""
        if self._redis is not None:
            await self._redis.run()

    def observe(self, meter: Meter) -> None:
        """Creates the instruments."""
        self._refused = meter.create_counter(
            "anabranch.quota.refused",
            unit="{quota}",
            description="Quotas that a refused request exceeded, by what they count",
        )
        meter.create_observable_gauge(
            "anabranch.quota.shared",
            callbacks=[self._is_shared],
            description="1 while all processes count together, 0 while each counts for itself",
        )

    def _is_shared(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(int(self._redis is not None and self._redis.answers))

    # For what is asked of Redis

    def take_own(self, counted: tuple[Counted, ...]) -> Reservation | Fault:
        """Decides without asking anybody, on this process's part."""
        shares = max(self._processes(), 1)
        waits = self._own.take(charges(counted, shares), self._now())
        return self.outcome(counted, waits, shares, shared=False)

    def outcome(
        self, counted: tuple[Counted, ...], waits: tuple[int, ...], shares: int, *, shared: bool
    ) -> Reservation | Fault:
        """What came of it."""
        if not any(waits):
            return Reservation(counted, shares, shared=shared)
        if self._refused is not None:
            for each, wait in zip(counted, waits, strict=True):
                if wait:
                    self._refused.add(1, {"anabranch.quota.unit": str(each.rule.unit)})
        return exceeded(counted, waits)

    def copy(self, counted: tuple[Counted, ...], taken: Taken) -> None:
        """Notes what Redis says of the buckets, for when it is away."""
        now = self._now()
        for each, ahead in zip(counted, taken.ahead, strict=True):
            self._own.set_ahead(each.key, ahead, now)

    def note_untold(self, counted: tuple[Counted, ...], *, took: bool) -> None:
        """Redis does not know of these, nor of what they took here if they did."""
        assert self._redis is not None, "it would not be asked"
        if len(self._untold) >= _MOST_UNTOLD:
            self._untold.clear()
        looks = self._redis.looks
        for charge in charges(counted):
            since, untold = self._untold.get(charge.key, (looks, 0))
            # Before Redis was last looked for, all were without it, as far as is known.
            before = untold if since == looks else 0
            self._untold[charge.key] = (looks, before + (charge.increment if took else 0))

    def correct(self, corrections: Corrections, *, shared: bool) -> None:
        """Has buckets corrected, those of all processes or this one's."""
        if not corrections:
            return
        if not shared or self._redis is None:
            self._own.settle(corrections, self._now())
            return
        self._redis.settle(corrections)
        if not self._redis.answers:
            # Meanwhile the copy stands for what all processes use: each one's part for the sum.
            shares = max(self._processes(), 1)
            own = [(key, shares * change) for key, change in corrections]
            self._own.settle(own, self._now())

    def _known(self, key: str) -> Known:
        untold = self._untold.pop(key, None)
        if untold is None:
            return Known(0, 0)
        return Known(self._own.ahead(key, self._now()), untold[1])

    def _now(self) -> int:
        return int(self._clock() * gcra.PER_SECOND)


class _Asked:
    """A request that Redis is asked about; see Asked."""

    __slots__ = ("_counted", "_decided", "_gate", "_own")

    def __init__(self, gate: QuotaGate, counted: tuple[Counted, ...], decided: Decided) -> None:
        self._gate = gate
        self._counted = counted
        self._decided = decided
        self._own: Reservation | Fault | None = None

    def decide(self, taken: Taken | None) -> None:
        gate, counted = self._gate, self._counted
        if taken is None:
            outcome = self._own = gate.take_own(counted)
        else:
            gate.copy(counted, taken)
            outcome = gate.outcome(counted, taken.waits, 1, shared=True)
        self._decided(outcome)

    def learn(self, taken: Taken | None) -> None:
        gate, counted, own = self._gate, self._counted, self._own
        if taken is None:
            gate.note_untold(counted, took=isinstance(own, Reservation))
            return
        gate.copy(counted, taken)
        took = not any(taken.waits)
        increments = [(charge.key, charge.increment) for charge in charges(counted)]
        if isinstance(own, Reservation):
            if not took:
                gate.correct(tuple(increments), shared=True)
            gate.correct(own.becomes_shared(), shared=True)
        elif took:
            gate.correct(tuple((key, -change) for key, change in increments), shared=True)
