"""Quotas of requests and tokens, as a process asks for them: reserved, then settled or released.

With Redis all processes count together. Without it, and while it does not answer, each lets its
part of every quota through. Money is budgets' (chassis/budgets); what a request is estimated at
and when it is settled is metered.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from opentelemetry.metrics import CallbackOptions, Counter, Meter, Observation
from redis.asyncio import Redis

from anabranch.v1 import errors_pb2
from services.chassis.authn import Principal
from services.chassis.errors import Fault
from services.chassis.quotas import gcra
from services.chassis.quotas.gcra import Buckets, Charge
from services.chassis.quotas.redis_buckets import RedisBuckets, Take, Taken
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.quotas.shared_buckets import SharedBuckets

PREFIX = "anabranch:quota:"
"""Of the keys in Redis, the same for all processes."""

_ALL = 0
"""In the place of the number of parts: what was taken of the whole quota."""


class _Counted(NamedTuple):
    """A rule that a request is counted under, and so much of its unit."""

    rule: QuotaRule
    whose: str
    key: str
    amount: int


class Reservation:
    """What one request has taken of its quotas. It ends once; ending it again does nothing."""

    __slots__ = ("_counted", "_shares")

    def __init__(self, counted: tuple[_Counted, ...], shares: int) -> None:
        self._counted = counted
        self._shares = shares

    @property
    def shared(self) -> bool:
        """Whether it was taken from the buckets of all processes together."""
        return self._shares == _ALL

    def end(self, tokens: int | None) -> tuple[tuple[str, int], ...]:
        """The corrections after so many tokens; after None, nothing ran. See Buckets.settle."""
        counted, self._counted = self._counted, ()
        found = []
        for rule, _, key, amount in counted:
            used = amount
            if tokens is None:
                used = 0
            elif rule.unit is Unit.TOKENS:
                used = tokens
            change = _taken(rule, used, self._shares) - _taken(rule, amount, self._shares)
            if change:
                found.append((key, change))
        return tuple(found)


Decided: TypeAlias = Callable[["Reservation | Fault"], None]
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
        # What was counted here while Redis was away, and is not known there.
        self._unknown_to_redis: set[str] = set()
        self._redis: SharedBuckets | None = None
        if redis is not None:
            self._redis = SharedBuckets(RedisBuckets(redis, prefix=PREFIX))
        self._refused: Counter | None = None

    def ask(self, principal: Principal, model: str, tokens: int, decided: Decided) -> None:
        """Reserves one request, of about so many tokens; without Redis, before it returns.

        More than a burst is never reserved: what is used beyond it is debt.
        """
        counted = _counted(principal, model, tokens)
        if not counted or self._redis is None or not self._redis.answers:
            decided(self._take_own(counted))
            return

        def answered(taken: Taken | None) -> None:
            decided(self._take_own(counted) if taken is None else self._took(counted, taken))

        now = self._now()
        ahead = [
            self._own.ahead(each.key, now) if each.key in self._unknown_to_redis else 0
            for each in counted
        ]
        self._unknown_to_redis.difference_update(each.key for each in counted)
        self._redis.ask(Take(_charges(counted, _ALL), tuple(ahead)), answered)

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
            if found.done() and not found.cancelled():
                decided_meanwhile = found.result()
                if isinstance(decided_meanwhile, Reservation):
                    self.release(decided_meanwhile)
            raise
        if isinstance(outcome, Fault):
            raise outcome
        return outcome

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """The request used so many tokens."""
        self._correct(reservation, reservation.end(tokens))

    def release(self, reservation: Reservation) -> None:
        """Nothing ran: neither the request nor its tokens count."""
        self._correct(reservation, reservation.end(None))

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

    def _took(self, counted: tuple[_Counted, ...], taken: Taken) -> Reservation | Fault:
        now = self._now()
        for each, ahead in zip(counted, taken.ahead, strict=True):
            self._own.set_ahead(each.key, ahead, now)
        return self._outcome(counted, taken.waits, _ALL)

    def _take_own(self, counted: tuple[_Counted, ...]) -> Reservation | Fault:
        shares = max(self._processes(), 1)
        waits = self._own.take(_charges(counted, shares), self._now())
        if self._redis is not None:
            self._unknown_to_redis.update(each.key for each in counted)
            if len(self._unknown_to_redis) > len(self._own):
                self._unknown_to_redis.clear()
        return self._outcome(counted, waits, shares)

    def _outcome(
        self, counted: tuple[_Counted, ...], waits: tuple[int, ...], shares: int
    ) -> Reservation | Fault:
        if not any(waits):
            return Reservation(counted, shares)
        exceeded = [each for each, wait in zip(counted, waits, strict=True) if wait]
        if self._refused is not None:
            for each in exceeded:
                self._refused.add(1, {"anabranch.quota.unit": str(each.rule.unit)})
        return _exceeded(exceeded, max(waits))

    def _correct(self, reservation: Reservation, corrections: tuple[tuple[str, int], ...]) -> None:
        if not corrections:
            return
        if not reservation.shared:
            self._own.settle(corrections, self._now())
        elif self._redis is not None:
            self._redis.settle(corrections)
            if not self._redis.answers:
                # Meanwhile the copy stands for what all processes use, each one's part for the sum.
                shares = max(self._processes(), 1)
                self._own.settle(
                    [(key, shares * change) for key, change in corrections], self._now()
                )

    def _now(self) -> int:
        return int(self._clock() * gcra.PER_SECOND)


def _counted(principal: Principal, model: str, tokens: int) -> tuple[_Counted, ...]:
    """What the request is counted under; of two rules for one bucket the later."""
    found: dict[str, _Counted] = {}
    for rule in principal.quotas:
        amount = tokens if rule.unit is Unit.TOKENS else 1
        if rule.unit is not Unit.COST and amount and rule.concerns(model):
            name = principal.tenant if rule.subject is Subject.TENANT else principal.client_id
            whose = f"{rule.subject}:{name}"
            # In braces what Redis Cluster hashes: all buckets of a request are in one place.
            key = (
                f"{{tenant:{quote(principal.tenant, safe='')}}}:{quote(whose, safe=':')}"
                f":{rule.unit}:{rule.period}:{rule.model}"
            )
            found[key] = _Counted(rule, whose, key, min(amount, rule.burst))
    return tuple(found.values())


def _charges(counted: Iterable[_Counted], shares: int) -> tuple[Charge, ...]:
    return tuple(
        [
            Charge(
                each.key,
                _taken(each.rule, each.amount, shares),
                gcra.tolerance(each.rule.burst, each.rule.limit, each.rule.period),
            )
            for each in counted
        ]
    )


def _taken(rule: QuotaRule, amount: int, shares: int) -> int:
    """Microseconds that an amount takes: of a part of the quota it takes the more."""
    return gcra.increment(amount, rule.limit, rule.period, max(shares, 1))


def _exceeded(exceeded: list[_Counted], wait: int) -> Fault:
    found = [(each.whose, _told(each.rule)) for each in exceeded]
    return Fault(
        errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
        "a quota is used up: " + "; ".join(f"{whose}, {what}" for whose, what in found),
        retry_after=wait / gcra.PER_SECOND,
        quota=found,
    )


def _told(rule: QuotaRule) -> str:
    what = f"{rule.limit} {rule.unit} in {rule.period} s"
    return f"{what} of {rule.model}" if rule.model else what
