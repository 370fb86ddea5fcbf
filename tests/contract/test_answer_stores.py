"""Answers in memory and in Redis are judged alike; those of Redis at any router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress

import pytest

from services.chassis.errors import Fault, reason_name
from services.chassis.redis_connection import open_redis
from services.router.feedback.answers import Answers, Judgement
from services.router.feedback.redis_answers import RedisAnswers
from services.router.feedback.stores import open_answers
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import until

ENGINE = ("river", "local", "engine-1")
CLOUD = ("sea\n\"'", "cloud", "cloud 1")
Open = Callable[..., "asyncio.Future[Answers]"]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.cluster)])
def opened(request: pytest.FixtureRequest, stack: AsyncExitStack):
    """Opens a store; several of Redis share it."""
    url = None
    if request.param == "redis":
        if binary() is None:
            pytest.skip("no Redis server installed")
        server: RedisServer = request.getfixturevalue("server")
        url = server.url
        with server.client() as own:
            own.flushall()
            own.script_flush()

    async def open(most: int = 100, window: float = 600.0) -> Answers:
        redis = None
        if url is not None:
            redis = open_redis(url)
            stack.push_async_callback(redis.aclose)
        found = await stack.enter_async_context(open_answers(redis, most=most, window=window))
        assert found is not None
        return found

    return open


def needs_redis(test):
    missing = pytest.mark.skipif(binary() is None, reason="no Redis server installed")
    return pytest.mark.cluster(missing(test))


async def refusal(answers: Answers, client_id: str, request_id: str, said: Judgement) -> str:
    with pytest.raises(Fault) as refused:
        await answers.judge(client_id, request_id, said)
    return reason_name(refused.value.reason)


async def test_an_answer_is_judged_once_and_the_same_again_changes_nothing(opened):
    answers = await opened()
    answers.remember("shop", "r-1", ENGINE)
    answers.remember("shop", "r-2", CLOUD)
    assert await answers.judge("shop", "r-1", Judgement(4, True)) == (ENGINE, Judgement(4, True))
    assert await answers.judge("shop", "r-2", Judgement(1, False)) == (CLOUD, Judgement(1, False))
    assert await answers.judge("shop", "r-1", Judgement(4, True)) == (ENGINE, Judgement())
    assert await answers.judge("shop", "r-1", Judgement(None, True)) == (ENGINE, Judgement())


async def test_what_was_left_out_may_be_said_later_and_nothing_taken_back(opened):
    answers = await opened()
    answers.remember("shop", "r-1", ENGINE)
    assert (await answers.judge("shop", "r-1", Judgement(2))).new == Judgement(2)
    assert await refusal(answers, "shop", "r-1", Judgement(3, True)) == "ALREADY_EXISTS"
    # The half that would have been new was not recorded either.
    assert (await answers.judge("shop", "r-1", Judgement(2, False))).new == Judgement(None, False)
    assert await refusal(answers, "shop", "r-1", Judgement(None, True)) == "ALREADY_EXISTS"


async def test_each_client_knows_its_own_answers_alone(opened):
    answers = await opened()
    answers.remember("shop", "r-1", ENGINE)
    answers.remember("rival", "r-2", CLOUD)
    for client_id, request_id in (("rival", "r-1"), ("shop", "r-2"), ("shop r-1", ""), ("", "r-1")):
        assert await refusal(answers, client_id, request_id, Judgement(1)) == "NOT_FOUND"
    answers.remember("rival", "r-1", CLOUD)
    assert await answers.judge("rival", "r-1", Judgement(5)) == (CLOUD, Judgement(5))
    assert await answers.judge("shop", "r-1", Judgement(1)) == (ENGINE, Judgement(1))


async def test_of_a_flood_the_latest_are_known(opened):
    answers = await opened(most=10)
    for n in range(1000):
        answers.remember("shop", f"r-{n}", ENGINE)
    for n in (990, 999):
        assert (await answers.judge("shop", f"r-{n}", Judgement(5))).answered == ENGINE
    for n in (0, 500, 989):
        assert await refusal(answers, "shop", f"r-{n}", Judgement(5)) == "NOT_FOUND"


async def test_a_repeated_request_is_judged_once(opened):
    answers = await opened()
    answers.remember("shop", "r-1", ENGINE)
    await answers.judge("shop", "r-1", Judgement(5))
    answers.remember("shop", "r-1", CLOUD)
    assert await refusal(answers, "shop", "r-1", Judgement(4)) == "ALREADY_EXISTS"


async def test_an_answer_is_forgotten_after_its_window(opened):
    answers = await opened(window=0.001)
    answers.remember("shop", "r-1", ENGINE)

    async def forgotten() -> bool:
        with suppress(Fault):
            await answers.judge("shop", "r-1", Judgement(5))
            return False
        return True

    await until(forgotten)


async def test_none_are_kept_where_none_may_be():
    for most, window in ((0, 60.0), (10, 0.0)):
        async with open_answers(None, most=most, window=window) as answers:
            assert answers is None


@needs_redis
async def test_any_router_takes_it_and_of_two_at_once_one_counts(server, stack):
    with server.client() as own:
        own.flushall()
    stores: list[Answers] = []
    for _ in range(2):
        redis = open_redis(server.url)
        stack.push_async_callback(redis.aclose)
        context = open_answers(redis, most=100, window=60.0)
        store = await stack.enter_async_context(context)
        assert store is not None
        stores.append(store)
    stores[0].remember("shop", "r-1", ENGINE)
    both = await asyncio.gather(
        *(store.judge("shop", "r-1", Judgement(3)) for store in stores for _ in range(8))
    )
    assert sorted(judged.new.rating or 0 for judged in both) == [0] * 15 + [3]


@needs_redis
async def test_what_waits_at_the_end_is_written_and_redis_holds_no_more_than_it_may(server):
    with server.client() as own:
        own.flushall()
        redis = open_redis(server.url)
        async with open_answers(redis, most=300, window=60.0) as answers:
            assert answers is not None
            for n in range(1000):
                answers.remember("a-client", f"secret-request-{n}", ENGINE)
        given = own.hgetall("anabranch:{feedback}:given")
        order = own.lrange("anabranch:{feedback}:order", 0, -1)
        assert len(given) == len(order) == 300
        assert set(given) == set(order)
        # Digests stand there, not what callers called their requests.
        assert not any(b"secret" in k or b"a-client" in k for k in (*given, *given.values()))
        assert 0 < own.pttl("anabranch:{feedback}:given") <= 60_000
        # One of the keys is evicted: the others are not let grow without it.
        own.delete("anabranch:{feedback}:order")
        async with open_answers(redis, most=300, window=60.0) as answers:
            assert answers is not None
            answers.remember("a-client", "r-1", ENGINE)
            assert (await answers.judge("a-client", "r-1", Judgement(5))).answered == ENGINE
        assert own.hlen("anabranch:{feedback}:given") == 1
        await redis.aclose()


@needs_redis
async def test_a_redis_that_is_away_harms_no_answer_and_is_used_again(caplog):
    with redis_server() as server:
        redis = open_redis(server.url)
        async with open_answers(redis, most=300, window=60.0) as answers:
            assert isinstance(answers, RedisAnswers)
            with server.frozen():
                for n in range(20_000):
                    answers.remember("shop", f"r-{n}", ENGINE)
                assert await refusal(answers, "shop", "r-1", Judgement(5)) == (
                    "DEPENDENCY_UNAVAILABLE"
                )

                async def told() -> bool:
                    return "answers cannot be remembered" in caplog.text

                await until(told)

            async def known() -> bool:
                with suppress(Fault):
                    await answers.judge("shop", "r-19999", Judgement(5))
                    return True
                return False

            await until(known)
        await redis.aclose()
