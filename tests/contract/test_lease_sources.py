"""What hands out budgets in slices never hands out more than there is, alone or in Redis."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from services.chassis.budgets.leases import LeaseSource, ShareOfBudget
from services.chassis.budgets.redis_leases import RedisLeases
from services.chassis.budgets.supply import Supply
from services.chassis.redis_connection import open_redis
from services.chassis.settings import Secret
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import BOUND_S, until

DAY = 86_400.0
PREFIX = "anabranch:budget:"


class Budget(NamedTuple):
    """As lease sources want it."""

    microusd: int
    period: float


BUDGET = Budget(1000, 1000 * DAY)
ACME = "tenant:acme"

NewSource = Callable[[], LeaseSource]


def needs_redis(test):
    missing = pytest.mark.skipif(binary() is None, reason="no Redis server installed")
    return pytest.mark.cluster(missing(test))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def lessee(redis: RedisServer) -> AsyncIterator[NewSource]:
    """Makes processes that lease from one empty Redis, each with connections of its own."""
    with redis.client() as own:
        own.flushall()
    async with AsyncExitStack() as stack:

        def new() -> RedisLeases:
            # What an operator may write in a URL changes nothing about who is cancelled.
            client = open_redis(Secret(f"{redis.url.reveal()}?socket_timeout=1"))
            stack.push_async_callback(client.aclose)
            return RedisLeases(client, time.time, prefix=PREFIX)

        yield new


@pytest.fixture(params=["share", pytest.param("redis", marks=pytest.mark.cluster)])
def source(request: pytest.FixtureRequest) -> LeaseSource:
    if request.param == "share":
        return ShareOfBudget(1, time.time)
    if binary() is None:
        pytest.skip("no Redis server installed")
    new: NewSource = request.getfixturevalue("lessee")
    return new()


async def take(source: LeaseSource, want: int, budget: Budget = BUDGET, account: str = ACME) -> int:
    lease = await source.take(account, budget, want)
    assert lease is not None
    assert lease.period_start <= time.time() < lease.period_end
    return lease.granted


# Both of them


async def test_slices_are_what_was_asked_for_until_the_budget_is_used_up(source):
    assert [await take(source, 400) for _ in range(4)] == [400, 400, 200, 0]


async def test_what_is_given_back_can_be_taken_again(source):
    lease = await source.take(ACME, BUDGET, 1000)
    await source.give_back(ACME, BUDGET, 300, lease.period_end)
    assert [await take(source, 1000), await take(source, 1)] == [300, 0]


async def test_accounts_do_not_share(source):
    assert await take(source, 1000) == 1000
    assert await take(source, 1000, account="all") == 1000
    assert await take(source, 1000, account="tenant:other") == 1000


async def test_periods_are_aligned_to_the_epoch(source):
    lease = await source.take(ACME, BUDGET, 1)
    assert lease.period_start % BUDGET.period == 0
    assert lease.period_end == lease.period_start + BUDGET.period


async def test_a_new_period_has_a_new_budget_and_what_comes_back_late_is_not_added(source):
    short = Budget(100, 0.5)
    granted: dict[float, list[int]] = {}
    last = None

    async def three_periods() -> bool:
        nonlocal last
        lease = await source.take(ACME, short, 60)
        if lease is not None:
            granted.setdefault(lease.period_start, []).append(lease.granted)
            if last is not None and last.period_end != lease.period_end:
                await source.give_back(ACME, short, 60, last.period_end)
            last = lease
        return len([slices for slices in granted.values() if sum(slices) == 100]) >= 3

    await until(three_periods)
    assert max(map(sum, granted.values())) == 100
    assert {slices[0] for slices in granted.values()} == {60}


async def test_a_budget_that_shrinks_grants_nothing_more(source):
    assert await take(source, 600) == 600
    assert await take(source, 600, Budget(500, BUDGET.period)) == 0
    assert await take(source, 600, Budget(700, BUDGET.period)) == 100


# Alone


async def test_processes_without_redis_have_equal_parts():
    processes = [ShareOfBudget(3, time.time) for _ in range(3)]
    assert [await take(process, 1000) for process in processes] == [333, 333, 333]


# In Redis


@needs_redis
async def test_many_processes_at_once_never_hold_more_than_the_budget(lessee):
    budget = Budget(100_000, BUDGET.period)
    draw = random.Random(7)
    processes = [lessee() for _ in range(8)]
    held = dict.fromkeys(range(8), 0)
    most = 0

    async def live(number: int) -> None:
        nonlocal most
        for _ in range(60):
            lease = await processes[number].take(ACME, budget, draw.randrange(1, 5000))
            assert lease is not None
            held[number] += lease.granted
            most = max(most, sum(held.values()))
            assert sum(held.values()) <= budget.microusd
            if draw.random() < 0.4:
                back = draw.randrange(held[number] + 1)
                # Gone from here before it can be anybody else's.
                held[number] -= back
                await processes[number].give_back(ACME, budget, back, lease.period_end)

    async with asyncio.TaskGroup() as group:
        for number in held:
            group.create_task(live(number))
    assert most > 0.9 * budget.microusd, "there was not enough for all"
    rest = budget.microusd - sum(held.values())
    assert await take(processes[0], budget.microusd, budget) == rest


@needs_redis
async def test_a_process_that_is_gone_leaves_what_it_held_used_up(lessee):
    assert await take(lessee(), 700) == 700
    assert [await take(lessee(), 1000), await take(lessee(), 1000)] == [300, 0]


@needs_redis
async def test_a_slice_whose_reply_was_lost_is_not_lost_for_long(lessee, redis):
    ours, theirs = lessee(), lessee()
    assert await take(ours, 100) == 100
    with redis.frozen():
        # It reads what was sent once it goes on, though nobody waits for the reply any more.
        assert await ours.take(ACME, BUDGET, 900) is None

    async def done() -> bool:
        with redis.client() as own:
            (name,) = own.keys("anabranch:budget:*")
            return sorted(v for k, v in own.hgetall(name).items() if k[:5] == b"held:") == [b"1000"]

    await until(done)
    assert await take(theirs, 1000) == 0, "for all that is known it is ours"
    assert await take(ours, 200) == 200
    assert await take(theirs, 1000) == 700


@needs_redis
async def test_a_slice_that_came_too_late_for_whoever_asked_is_given_back(lessee, redis):
    ours, theirs = lessee(), lessee()
    assert await take(ours, 0) == 0
    asking = asyncio.create_task(ours.take(ACME, BUDGET, 1000))
    with redis.client() as own:
        (name,) = own.keys("anabranch:budget:*")
        # Looks without letting the loop go on, so that the reply cannot have been read yet.
        while own.hget(name, f"held:{ours._lessee}") != b"1000":
            await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait((asking,))
    assert asking.cancelled()
    assert await take(theirs, 1000) == 1000


@needs_redis
async def test_one_process_that_asks_twice_at_once_gets_no_more_than_there_is(lessee):
    ours, theirs = lessee(), lessee()
    assert sum(await asyncio.gather(*(take(ours, 600) for _ in range(5)))) == 1000
    assert await take(theirs, 1000) == 0


@needs_redis
async def test_a_call_that_comes_after_a_later_one_changes_nothing(lessee):
    ours, theirs = lessee(), lessee()
    assert await take(ours, 500) == 500
    ours._calls -= 1  # the same as a call that was under way all the time
    assert await ours.take(ACME, BUDGET, 100) is None
    assert await take(theirs, 1000) == 500


@needs_redis
async def test_a_redis_that_forgot_learns_what_is_held_from_whoever_asks(lessee, redis):
    ours, theirs = lessee(), lessee()
    assert await take(ours, 600) == 600
    with redis.client() as own:
        own.flushall()
    assert await take(ours, 100) == 100
    assert await take(theirs, 1000) == 300


@needs_redis
async def test_what_is_given_back_while_redis_is_away_comes_back_with_the_next_call(lessee, redis):
    ours, theirs = lessee(), lessee()
    lease = await ours.take(ACME, BUDGET, 1000)
    with redis.frozen():
        await ours.give_back(ACME, BUDGET, 400, lease.period_end)

    async def back() -> bool:
        assert await ours.take(ACME, BUDGET, 0) is not None
        return await take(theirs, 400) == 400

    await until(back)


@needs_redis
async def test_giving_much_back_to_a_redis_that_hangs_does_not_take_long(lessee, redis):
    ours = lessee()
    leases = {f"tenant:{n}": await ours.take(f"tenant:{n}", BUDGET, 10) for n in range(100)}
    with redis.frozen():
        # One of them waits for Redis. If all did, that were 100 s.
        async with asyncio.timeout(BOUND_S):
            for account, lease in leases.items():
                await ours.give_back(account, BUDGET, 10, lease.period_end)


@needs_redis
async def test_a_period_that_is_over_on_the_clock_here_is_no_lease(redis, lessee):
    client = open_redis(redis.url)
    ahead = RedisLeases(client, lambda: time.time() + 2 * BUDGET.period, prefix=PREFIX)
    assert await ahead.take(ACME, BUDGET, 1000) is None
    assert await ahead.take(ACME, BUDGET, 0) is None
    assert await take(lessee(), 1000) == 1000
    await client.aclose()


@needs_redis
async def test_without_redis_the_lease_is_spent_and_then_nothing():
    with redis_server() as server:
        client = open_redis(server.url)
        leases = RedisLeases(client, time.time, prefix=PREFIX)
        supply = Supply(lambda _: Budget(1000, BUDGET.period), leases, time.time)
        supplying = asyncio.create_task(supply.keep_supplied())
        assert supply.available((ACME,)) == 0

        async def leased() -> bool:
            return bool(supply.available((ACME,)))

        await until(leased)
        server.kill()
        left = supply.available((ACME,))
        assert left
        assert supply.reserve((ACME,), left) is not None
        assert supply.reserve((ACME,), 1) is None

        async def asked() -> bool:
            return not supply._asked

        await until(asked)
        assert supply.is_unanswered(ACME)
        assert supply.available((ACME,)) == 0
        assert supply.reserve((ACME,), 1) is None
        supplying.cancel()
        await asyncio.wait((supplying,))
        await client.aclose()


@needs_redis
async def test_accounts_of_a_period_that_is_over_are_forgotten(lessee, redis):
    await take(lessee(), 1)
    with redis.client() as own:
        (name,) = own.keys("anabranch:budget:*")
        assert 0 < own.pttl(name) <= 2 * BUDGET.period * 1000


@needs_redis
async def test_accounts_of_one_name_under_different_prefixes_do_not_share(redis, lessee):
    assert await take(lessee(), 1000) == 1000
    client = open_redis(redis.url)
    others = RedisLeases(client, time.time, prefix="anabranch:other:")
    assert await take(others, 1000) == 1000
    await client.aclose()
