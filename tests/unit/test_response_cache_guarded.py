"""A slower tier under guard: nobody waits for one that fails, and nobody hears of it."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.tasks import Tasks
from services.router.core.policy import ModelRules
from services.router.response_cache import guarded
from services.router.response_cache.entry import Entry
from services.router.response_cache.guarded import GuardedTier
from services.router.response_cache.tiers import TierFailed
from tests.support.response_cache import scene
from tests.support.waiting import BOUND_S, until

KEY = bytes(32)
ANSWER = Entry(1_000_000.0, 1, pb.GenerateChunk(text="kept").SerializeToString())
AWAY = TierFailed("it is away")
LOST = Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "it is gone")


class ScriptedTier:
    """Does what the test says; `answering` unset makes it hang."""

    def __init__(self, source=pb.CACHE_SOURCE_REDIS) -> None:
        self.source = source
        self.entries: dict[bytes, Entry] = {}
        self.puts: list[tuple[bytes, float]] = []
        self.opened = self.asked = 0
        self.failure: TierFailed | None = None
        self.open_failure: TierFailed | None = None
        self.put_failure: TierFailed | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.writing = asyncio.Event()
        self.writing.set()
        self.closed = False
        self.held = None

    async def open(self) -> None:
        self.opened += 1
        if self.open_failure is not None:
            raise self.open_failure

    async def get(self, key: bytes, longest: int) -> Entry | None:
        self.asked += 1
        await self.answering.wait()
        if self.failure is not None:
            raise self.failure
        return self.entries.get(key)

    async def put(self, key: bytes, entry: Entry, ttl: float) -> None:
        await self.writing.wait()
        if self.put_failure is not None:
            raise self.put_failure
        self.puts.append((key, ttl))
        self.entries[key] = entry

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr(guarded, "_REST_S", (0.01, 0.05))


@asynccontextmanager
async def guard(tier: ScriptedTier, *, patience: float = 10.0):
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        kept = GuardedTier(tier, "scripted", tasks, patience=patience)
        await kept.start()
        try:
            yield kept
        finally:
            tier.answering.set()
            tier.writing.set()
            tasks.cancel_all()
    await kept.close()
    assert tier.closed


async def eventually(true) -> None:
    async def asked() -> bool:
        return true()

    await until(asked)


async def test_what_is_offered_is_written_and_found():
    tier = ScriptedTier()
    async with guard(tier) as g:
        g.offer(KEY, ANSWER, 60)
        await eventually(lambda: tier.puts == [(KEY, 60)])
        assert await g.get(KEY, 1000) == ANSWER


async def test_a_tier_that_hangs_is_waited_for_only_so_long_and_then_left_alone():
    tier = ScriptedTier()
    async with guard(tier, patience=0.01) as g:
        tier.open_failure = AWAY
        tier.answering.clear()
        for _ in range(3):
            assert await g.get(KEY, 1000) is None
        assert g.resting
        asked = tier.asked
        assert await g.get(KEY, 1000) is None
        assert tier.asked == asked, "nobody asks one that rests"


async def test_one_slow_reply_is_no_reason_to_leave_it_alone():
    tier = ScriptedTier()
    async with guard(tier, patience=0.01) as g:
        for _ in range(3):
            for _ in range(2):
                tier.answering.clear()
                assert await g.get(KEY, 1000) is None
            tier.answering.set()
            await asyncio.sleep(0)
            g._patience = 10.0
            await g.get(KEY, 1000)
            g._patience = 0.01
        assert not g.resting


async def test_a_tier_that_fails_is_used_again_once_it_can_be_opened():
    tier = ScriptedTier()
    async with guard(tier) as g:
        tier.failure = tier.open_failure = AWAY
        for _ in range(3):
            assert await g.get(KEY, 1000) is None
        assert g.resting
        await eventually(lambda: tier.opened > 3)
        tier.failure = tier.open_failure = None
        tier.entries[KEY] = ANSWER
        await eventually(lambda: not g.resting)
        assert await g.get(KEY, 1000) == ANSWER


async def test_a_useless_tier_is_opened_again_at_the_first_failure():
    tier = ScriptedTier()
    async with guard(tier) as g:
        tier.failure = TierFailed("unreadable", useless=True)
        assert await g.get(KEY, 1000) is None
        assert g.resting
        tier.failure = None
        await eventually(lambda: not g.resting)


async def test_a_tier_that_cannot_be_opened_at_the_start_is_opened_later():
    tier = ScriptedTier()
    tier.open_failure = AWAY
    async with guard(tier) as g:
        assert g.resting
        g.offer(KEY, ANSWER, 60)
        assert g.dropped == 1
        tier.open_failure = None
        await eventually(lambda: not g.resting)


async def test_a_full_store_can_still_be_read():
    tier = ScriptedTier()
    async with guard(tier) as g:
        tier.put_failure = TierFailed("full")
        for number in range(5):
            g.offer(bytes([number] * 32), ANSWER, 60)
        await eventually(lambda: g.dropped == 5)
        assert not g.resting


async def test_what_waits_to_be_written_is_bounded(monkeypatch):
    monkeypatch.setattr(guarded, "_WAITING_BYTES", 3 * ANSWER.size)
    tier = ScriptedTier()
    async with guard(tier) as g:
        tier.writing.clear()
        for number in range(10):
            g.offer(bytes([number] * 32), ANSWER, 60)
        # The same answer again takes no more room.
        g.offer(bytes([2] * 32), ANSWER, 60)
        assert g.waiting == 3
        assert g.dropped >= 7


async def test_what_waits_at_the_end_is_written():
    tier = ScriptedTier()
    async with guard(tier) as g:
        g.offer(KEY, ANSWER, 60)
        assert not tier.puts
    assert tier.puts


# Behind the cache


def other(source: pb.CacheSource) -> ScriptedTier:
    return ScriptedTier(source)


@asynccontextmanager
async def cached(*tiers: ScriptedTier, patience: float = 10.0):
    async with scene() as s:
        guards = [GuardedTier(tier, "scripted", s.tasks, patience=patience) for tier in tiers]
        for g in guards:
            await g.start()
        s.new_cache(guards)
        yield s


async def test_a_hit_in_a_slower_tier_answers_and_moves_up():
    redis, disk = other(pb.CACHE_SOURCE_REDIS), other(pb.CACHE_SOURCE_DISK)
    async with cached(redis, disk) as s:
        first = s.ask()
        await eventually(lambda: s.started)
        s.last.say("kept")
        s.last.end()
        await first.answered()
        await eventually(lambda: redis.puts and disk.puts)
        (key,) = disk.entries
        redis.entries.clear()
        redis.puts.clear()
        s.memory.discard(key)
        s.now += 600

        second, third = s.ask(), s.ask()
        assert (await second.answered()).receipt.cache == pb.CACHE_SOURCE_DISK
        assert (await third.answered()).receipt.cache == pb.CACHE_SOURCE_DISK
        assert second.text == "kept"
        assert s.ask().answer.receipt.cache == pb.CACHE_SOURCE_MEMORY
        # Moving up makes no answer younger.
        await eventually(lambda: redis.puts == [(key, 3000)])
        assert s.memory.get(key) == disk.entries[key]
        assert len(s.started) == 1
        assert s.cache.hits[pb.CACHE_SOURCE_DISK] == 2


async def test_an_answer_that_is_too_old_by_the_policy_of_now_is_asked_again():
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        s.ask()
        await eventually(lambda: s.started)
        s.last.end()
        (key,) = list(s.memory._entries)
        await eventually(lambda: redis.puts)
        s.memory.discard(key)
        s.now += 3600
        s.ask()
        await eventually(lambda: len(s.started) == 2)


async def test_a_request_is_sent_though_every_tier_fails_or_hangs():
    redis, disk = other(pb.CACHE_SOURCE_REDIS), other(pb.CACHE_SOURCE_DISK)
    async with cached(redis, disk, patience=0.01) as s:
        redis.answering.clear()
        disk.failure = AWAY
        caller = s.ask()
        await eventually(lambda: s.started)
        s.last.say("x")
        s.last.end()
        assert (await caller.answered()).choices[0].text == "x"
        redis.answering.set()


async def test_identical_requests_share_the_looking_up_too():
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        redis.answering.clear()
        first, second = s.ask(), s.ask()
        assert not s.started
        first.cancel()
        assert first.answer.choices[0].finish_reason == pb.FINISH_REASON_CANCELLED
        redis.answering.set()
        await eventually(lambda: s.started)
        assert redis.asked == 1
        # The one who stayed is the one who is sent.
        assert s.last.context.request_id == second.request_id
        s.last.say("x")
        s.last.end()
        assert (await second.answered()).request_id == second.request_id


async def test_what_is_sent_under_another_policy_than_it_came_under_is_not_kept():
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        redis.answering.clear()
        caller = s.ask()
        before, s.policy = s.policy, replace(s.policy, models={"river": ModelRules(local="sea")})
        redis.answering.set()
        await eventually(lambda: s.started)
        s.last.say("x")
        s.last.end()
        assert (await caller.answered()).choices[0].text == "x"
        s.policy = before
        assert s.cache.stored == 0
        s.ask()
        await eventually(lambda: len(s.started) == 2)


async def test_nothing_is_sent_for_callers_who_left_while_it_was_looked_up():
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        redis.answering.clear()
        caller = s.ask()
        caller.cancel()
        assert caller.ends
        redis.answering.set()
        await eventually(lambda: not s.cache._running)
        asked = s.ask("another")
        await eventually(lambda: s.started)
        assert len(s.started) == 1
        asked.cancel()


async def test_a_refusal_after_looking_up_reaches_everybody():
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        redis.answering.clear()
        callers = [s.ask() for _ in range(3)]
        s.refuse = LOST
        redis.answering.set()
        for caller in callers:
            async with asyncio.timeout(BOUND_S):
                await caller.over.wait()
            assert caller.fault is LOST


async def test_a_bug_behind_the_cache_ends_the_request_and_not_the_process(monkeypatch):
    redis = other(pb.CACHE_SOURCE_REDIS)
    async with cached(redis) as s:
        monkeypatch.setattr(s, "start", lambda *_: 1 / 0)
        caller = s.ask()
        async with asyncio.timeout(BOUND_S):
            await caller.over.wait()
        assert caller.fault.reason == errors_pb2.ERROR_REASON_INTERNAL
