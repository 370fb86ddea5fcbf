"""A Redis that is late, away or back: everybody is told in time, and what was taken is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.quotas import shared_buckets
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.redis_buckets import NOTHING, Settle, Take, Taken
from services.chassis.quotas.reservations import Reservation, counted_under
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.quotas.shared_buckets import SharedBuckets
from tests.support.waiting import until

DAY = 86_400
RULE = QuotaRule(Subject.TENANT, Unit.TOKENS, DAY, DAY, 1000)  # a token takes a second
CALLER = Principal("web", "shop", frozenset(), 2e9, "t", quotas=(RULE,))
SECOND = 1_000_000
ROOM = Taken((0,), (5 * SECOND,))
NO_ROOM = Taken((7 * SECOND,), (1000 * SECOND,))


class Redis:
    """Answers as the test says, and when."""

    def __init__(self) -> None:
        self.held: asyncio.Future[None] | None = None
        self.fails = False
        self.says = ROOM
        self.takes: list[Take] = []
        self.settles: list[Settle] = []

    async def perform(self, calls: Sequence[Take | Settle]) -> list[Taken]:
        for call in calls:
            if isinstance(call, Settle):
                self.settles.append(call)
            elif call.charges:
                self.takes.append(call)
        asks = any(isinstance(call, Take) and call.charges for call in calls)
        if self.held is not None and asks:
            await self.held
        if self.fails:
            raise ConnectionResetError("gone")
        return [self.says if isinstance(call, Take) and call.charges else NOTHING for call in calls]

    def hold(self) -> Callable[[], None]:
        self.held = held = asyncio.get_running_loop().create_future()

        def answer() -> None:
            self.held = None
            held.set_result(None)

        return answer

    @property
    def changes(self) -> list[int]:
        """By how many seconds the bucket was corrected, in order."""
        return [change // SECOND for call in self.settles for _, change in call.corrections]


@asynccontextmanager
async def gate(redis: Redis, processes: int = 1) -> AsyncIterator[QuotaGate]:
    made = QuotaGate(processes=lambda: processes)
    buckets: Any = redis
    made._redis = shared = SharedBuckets(buckets)
    running = asyncio.create_task(made.run())
    try:
        await until(lambda: _is(shared.answers))
        yield made
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _is(condition: Any) -> bool:
    return bool(condition)


async def settled(redis: Redis, count: int) -> None:
    await until(lambda: _is(len(redis.settles) >= count))


async def asked(made: QuotaGate, tokens: int = 10) -> Reservation | Fault:
    try:
        return await made.reserve(CALLER, "river", tokens)
    except Fault as fault:
        return fault


async def test_what_redis_says_is_what_is_told():
    redis = Redis()
    async with gate(redis) as made:
        reservation = await asked(made)
        assert isinstance(reservation, Reservation)
        assert reservation.shared
        redis.says = NO_ROOM
        fault = await asked(made)
        assert isinstance(fault, Fault)
        assert fault.retry_after == 7.0


async def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_charged():
    redis = Redis()
    async with gate(redis) as made:
        for used in (4, 15, 10):
            reservation = await asked(made)
            assert isinstance(reservation, Reservation)
            made.settle(reservation, used)
            made.settle(reservation, 1)
        await settled(redis, 2)
        made.release(await asked(made))  # type: ignore[arg-type]
        await settled(redis, 3)
        assert redis.changes == [-6, 5, -10]


async def test_a_late_answer_that_took_it_makes_the_reservation_shared():
    redis = Redis()
    async with gate(redis) as made:
        answer = redis.hold()
        reservation = await asked(made)
        assert isinstance(reservation, Reservation)
        assert not reservation.shared
        answer()
        await until(lambda: _is(reservation.shared))
        made.settle(reservation, 4)
        await settled(redis, 1)
        assert redis.changes == [-6]


async def test_a_late_answer_that_refused_is_charged_since_it_went_on():
    redis = Redis()
    async with gate(redis) as made:
        answer, redis.says = redis.hold(), NO_ROOM
        reservation = await asked(made)
        assert isinstance(reservation, Reservation)
        made.settle(reservation, 4)
        answer()
        await settled(redis, 2)
        assert redis.changes == [10, -6]


async def test_a_late_answer_for_one_that_was_refused_is_given_back():
    redis = Redis()
    async with gate(redis) as made:
        made._own.set_ahead(_key(), 2000 * SECOND, made._now())
        answer = redis.hold()
        assert isinstance(await asked(made), Fault)
        answer()
        await settled(redis, 1)
        assert redis.changes == [-10]


def _key() -> str:
    return counted_under(CALLER, "river", 1)[0].key


async def test_while_redis_fails_each_process_lets_its_part_through(monkeypatch):
    monkeypatch.setattr(shared_buckets, "LOOK_AGAIN_S", 0.01)
    redis = Redis()
    async with gate(redis, processes=4) as made:
        await asked(made)  # Redis says that the bucket is five tokens from full
        redis.fails = True
        count = 0
        while isinstance(await asked(made), Reservation):
            count += 1
        assert count == (1000 - 5) // (4 * 10)
        assert made._redis is not None
        assert not made._redis.answers


async def test_once_redis_is_back_it_hears_what_was_let_through(monkeypatch):
    monkeypatch.setattr(shared_buckets, "LOOK_AGAIN_S", 0.01)
    redis = Redis()
    async with gate(redis, processes=4) as made:
        redis.fails = True
        for _ in range(3):
            assert isinstance(await asked(made), Reservation)
        redis.fails = False
        assert made._redis is not None
        shared = made._redis
        await until(lambda: _is(shared.answers))
        await asked(made)
        (known,) = redis.takes[-1].known
        # Of this process's part; how much of it is new to Redis depends on when it was looked for.
        assert 119 * SECOND < known.ahead <= 120 * SECOND
        assert known.untold in (0, 10 * SECOND, 20 * SECOND, 30 * SECOND)
        await asked(made)
        assert redis.takes[-1].known == ((0, 0),)


async def test_what_is_owed_at_the_end_is_told_before_the_process_ends():
    redis = Redis()
    async with gate(redis) as made:
        reservation = await asked(made)
        assert isinstance(reservation, Reservation)
        made.settle(reservation, 3)
    assert redis.changes == [-7]


async def test_who_waits_when_the_process_ends_is_told():
    redis = Redis()
    async with gate(redis) as made:
        redis.hold()
        waiting = asyncio.create_task(asked(made))
        await until(lambda: _is(redis.takes))
    assert isinstance(await waiting, Reservation)
