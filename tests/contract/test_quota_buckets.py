"""Buckets of memory and of Redis decide alike; those of Redis are shared, and vanish when full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
import redis.exceptions

from services.chassis.quotas import gcra
from services.chassis.quotas.gcra import PER_SECOND, Buckets, Charge
from services.chassis.quotas.redis_buckets import NOTHING, Known, RedisBuckets, Settle, Take
from services.chassis.redis_connection import open_redis
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import until

PREFIX = "anabranch:quota:"
DAY = 86_400
NOT_MORE = Known(0, 0)


class Kept(Protocol):
    """Buckets, wherever they are."""

    async def take(self, *charges: Charge) -> tuple[int, ...]: ...

    async def settle(self, *corrections: tuple[str, int]) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._buckets = Buckets()

    async def take(self, *charges: Charge) -> tuple[int, ...]:
        return self._buckets.take(charges, _now())

    async def settle(self, *corrections: tuple[str, int]) -> None:
        self._buckets.settle(corrections, _now())


class InRedis:
    def __init__(self, buckets: RedisBuckets) -> None:
        self.buckets = buckets

    async def take(self, *charges: Charge, known: Known = NOT_MORE) -> tuple[int, ...]:
        (taken,) = await self.buckets.perform([Take(charges, (known,) * len(charges))])
        return taken.waits

    async def settle(self, *corrections: tuple[str, int]) -> None:
        assert await self.buckets.perform([Settle(corrections)]) == [NOTHING]


def _now() -> int:
    return int(time.time() * PER_SECOND)


def daily(amount: int, burst: int, *, key: str = "{t}:a", limit: int = 0) -> Charge:
    """Of a bucket that a test's time does not fill: a unit of it takes a day."""
    limit = limit or 1
    return Charge(key, gcra.increment(amount, limit, DAY), gcra.tolerance(burst, limit, DAY))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def process(server: RedisServer) -> AsyncIterator[Callable[[], InRedis]]:
    """Makes processes with connections of their own to one empty Redis, scripts forgotten too."""
    with server.client() as own:
        own.flushall()
        own.script_flush()
    async with AsyncExitStack() as stack:

        def new() -> InRedis:
            client = open_redis(server.url)
            stack.push_async_callback(client.aclose)
            return InRedis(RedisBuckets(client, prefix=PREFIX))

        yield new


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.cluster)])
def kept(request: pytest.FixtureRequest) -> Kept:
    if request.param == "memory":
        return InMemory()
    if binary() is None:
        pytest.skip("no Redis server installed")
    new: Callable[[], InRedis] = request.getfixturevalue("process")
    return new()


def needs_redis(test):
    missing = pytest.mark.skipif(binary() is None, reason="no Redis server installed")
    return pytest.mark.cluster(missing(test))


async def test_a_burst_passes_and_what_is_beyond_waits_for_the_rate(kept: Kept):
    assert [await kept.take(daily(1, 2)) for _ in range(2)] == [(0,), (0,)]
    (wait,) = await kept.take(daily(1, 2))
    assert (DAY - 60) * PER_SECOND < wait <= DAY * PER_SECOND


async def test_of_several_buckets_all_are_charged_or_none(kept: Kept):
    wide, narrow = daily(1, 2, key="{t}:wide"), daily(1, 1, key="{t}:narrow")
    assert await kept.take(wide, narrow) == (0, 0)
    waits = await kept.take(wide, narrow)
    assert (waits[0], bool(waits[1])) == (0, True)
    assert await kept.take(wide) == (0,), "the refused request took nothing of it"
    assert await kept.take(wide) != (0,)


async def test_what_was_not_used_is_there_again(kept: Kept):
    assert await kept.take(daily(5, 5)) == (0,)
    await kept.settle(("{t}:a", -daily(4, 5).increment))
    assert await kept.take(daily(4, 5)) == (0,)
    assert await kept.take(daily(1, 5)) != (0,)


async def test_what_was_used_beyond_is_debt(kept: Kept):
    assert await kept.take(daily(1, 5)) == (0,)
    await kept.settle(("{t}:a", daily(10, 5).increment))
    (wait,) = await kept.take(daily(1, 5))
    assert 6.9 * DAY < wait / PER_SECOND <= 7 * DAY


async def test_more_than_a_burst_passes_a_full_bucket_once(kept: Kept):
    assert await kept.take(daily(7, 5)) == (0,)
    (wait,) = await kept.take(daily(5, 5))
    assert 6.9 * DAY < wait / PER_SECOND <= 7 * DAY


async def test_a_full_bucket_cannot_be_filled_beyond_its_burst(kept: Kept):
    await kept.settle(("{t}:a", -daily(3, 2).increment))
    assert await kept.take(daily(2, 2)) == (0,)
    assert await kept.take(daily(1, 2)) != (0,)


async def test_time_fills_a_bucket(kept: Kept):
    # A thousandth of a second each, so that it is full again within a moment.
    quick = Charge("{t}:a", PER_SECOND // 1000, PER_SECOND // 1000)
    assert await kept.take(quick) == (0,)

    async def admitted() -> bool:
        return await kept.take(quick) == (0,)

    await until(admitted)


async def test_many_units_are_counted_to_the_last(kept: Kept):
    # Of a million a day each takes 86.4 ms: the increment of many is rounded once.
    charges = [daily(9, 1000, limit=1_000_000) for _ in range(111)]
    assert all([await kept.take(charge) == (0,) for charge in charges])
    assert await kept.take(daily(2, 1000, limit=1_000_000)) != (0,)


@needs_redis
async def test_processes_share_buckets_at_the_same_time(process: Callable[[], InRedis]):
    several = [process() for _ in range(4)]

    async def ask(one: InRedis) -> int:
        return sum([await one.take(daily(1, 50)) == (0,) for _ in range(40)])

    assert sum(await asyncio.gather(*map(ask, several))) == 50


@needs_redis
async def test_a_bucket_vanishes_when_it_is_full(process: Callable[[], InRedis], server):
    await process().take(daily(2, 2), Charge("{t}:quick", 10_000, 10_000))
    with server.client() as own:

        async def gone() -> bool:
            return own.keys() == [b"anabranch:quota:{t}:a"]

        await until(gone)
        assert 0 < own.pttl("anabranch:quota:{t}:a") <= 2 * DAY * 1000


@needs_redis
async def test_what_was_let_through_while_redis_was_away_is_made_up_for(
    process: Callable[[], InRedis],
):
    one, other = process(), process()
    let_through = daily(3, 4).increment
    # Redis remembers nothing of that time: the bucket is as the process knows it.
    assert await one.take(daily(1, 4), known=Known(let_through, let_through)) == (0,)
    # Redis remembers what others took: it comes on top of that.
    (wait,) = await other.take(daily(1, 4), known=Known(0, let_through))
    assert 3.9 * DAY < wait / PER_SECOND <= 4 * DAY
    assert await one.take(daily(1, 4)) != (0,)


@needs_redis
async def test_several_calls_are_done_in_order_in_one_go(process: Callable[[], InRedis]):
    take = Take((daily(1, 1),), (NOT_MORE,))
    give_back = Settle((("{t}:a", -daily(1, 1).increment),))
    found = await process().buckets.perform([take, take, give_back, take])
    assert [any(taken.waits) for taken in found] == [False, True, False, False]


@needs_redis
async def test_a_value_that_is_none_of_ours_is_an_error_and_not_a_free_bucket(
    process: Callable[[], InRedis], server
):
    with server.client() as own:
        own.set("anabranch:quota:{t}:a", "mine")
    with pytest.raises(redis.exceptions.RedisError):
        await process().take(daily(1, 1))


@needs_redis
async def test_a_restarted_redis_learns_the_script_again(process: Callable[[], InRedis], server):
    one = process()
    await one.take(daily(1, 2))
    with server.client() as own:
        own.script_flush()
    assert await one.take(daily(1, 2)) == (0,)
