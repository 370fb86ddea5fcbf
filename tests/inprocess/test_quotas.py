"""Quotas at the door of a real engine: who exceeds one is refused with how long to wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_from_status
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from tests.support.quotas import DAY, ask, engine, gate_of, ready, refused, rule
from tests.support.redis import binary, redis_server
from tests.support.waiting import BOUND_S, until


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.cluster)])
def counted_in(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of an engine that counts there."""
    if request.param == "memory":
        yield {}
        return
    if binary() is None:
        pytest.skip("no Redis server installed")
    with redis_server() as redis:
        yield {"redis_url": redis.url}


# What is counted


async def test_a_refusal_says_which_quota_and_how_long_to_wait(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(
            rule(Unit.REQUESTS, 2, period=60),
            rule(Unit.REQUESTS, 2, subject=Subject.CLIENT, model="riv*", period=600),
            rule(Unit.TOKENS, 10_000),
        )
        assert await caller.admitted(mine, 2) == 2
        fault = await caller.refusal(mine)
        assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.metadata == {}
        assert fault.work == "not_dispatched"
        assert fault.quota == (
            ("tenant:shop", "2 requests in 60 s"),
            ("client:web", "2 requests in 600 s of riv*"),
        )
        assert fault.retry_after is not None
        assert 100 < fault.retry_after <= 300, "the longest of the waits"


async def test_tokens_are_settled_on_what_was_used(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        used = (await caller.generate(caller.auth())).usage
        each = used.prompt_tokens + used.completion_tokens
        mine = caller.auth(rule(Unit.TOKENS, 1000))
        # Reserved for 500 tokens each, only one would fit at a time beside the first's use.
        count = await caller.admitted(
            mine, 200, sampling={"max_tokens": 500, "ignore_eos": False, "stop": [" "]}
        )
        assert count > 2
        assert each < 500


async def test_what_was_used_beyond_a_burst_is_debt(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(QuotaRule(Subject.TENANT, Unit.TOKENS, 1000, DAY, 10))
        answer = await caller.generate(mine, sampling={"max_tokens": 300})
        used = answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert used > 300

        async def settled() -> bool:
            fault = await caller.refusal(mine)
            assert fault.retry_after is not None
            # Ten of them pass at once: the rest must have passed before ten more do.
            return used * 86.4 - 60 < fault.retry_after <= used * 86.4

        await until(settled)


async def test_a_quota_of_a_model_pattern_counts_these_models_together_and_no_others(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(rule(Unit.REQUESTS, 2, model="ri*"))
        assert await caller.admitted(mine, 5) == 2
        assert await caller.admitted(mine, 5, model="lake") == 5


async def test_clients_of_a_tenant_share_its_quota_and_have_their_own(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        rules = (
            rule(Unit.REQUESTS, 5),
            rule(Unit.REQUESTS, 3, subject=Subject.CLIENT),
        )
        assert await caller.admitted(caller.auth(*rules, client="a"), 5) == 3
        assert await caller.admitted(caller.auth(*rules, client="b"), 5) == 2
        assert await caller.admitted(caller.auth(*rules, client="a", tenant="other"), 5) == 3


async def test_who_has_no_quota_is_not_counted(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        assert await caller.admitted(caller.auth(), 20) == 20
        assert await caller.admitted(caller.auth(rule(Unit.COST, 1)), 20) == 20
        assert len(gate_of(caller.host)._own) == 0


async def test_a_request_that_nobody_could_run_costs_nothing(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(rule(Unit.REQUESTS, 1), rule(Unit.TOKENS, 100))
        for _ in range(3):
            fault = await caller.refusal(mine, model="unknown")
            assert fault.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
        assert await caller.admitted(mine, 3) == 1


# How it is asked


async def test_every_rpc_counts(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(rule(Unit.REQUESTS, 3))
        await caller.generate(mine)
        stream = caller.stub.StreamGenerate(ask(), metadata=mine, timeout=BOUND_S)
        assert [chunk async for chunk in stream]
        counting = model_pb2.CountTokensRequest(model="river", request=ask(model=""))
        await caller.stub.CountTokens(counting, metadata=mine, timeout=BOUND_S)
        used_up = errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        assert (await caller.refusal(mine)).reason == used_up
        call = caller.stub.CountTokens(counting, metadata=mine, timeout=BOUND_S)
        assert (await refused(call)).reason == used_up
        embedding = model_pb2.EmbedRequest(model="river", inputs=["a"])
        call = caller.stub.Embed(embedding, metadata=mine, timeout=BOUND_S)
        assert (await refused(call)).reason == used_up
        stream = caller.stub.StreamGenerate(ask(), metadata=mine, timeout=BOUND_S)
        assert (await refused(stream.read())).reason == used_up


class SessionOf:
    """One session, and the frames that came."""

    def __init__(self, stub: Any, auth: Any) -> None:
        self.call = stub.Session(metadata=auth, timeout=BOUND_S)
        self.over: dict[int, session_pb2.SessionResponseFrame] = {}

    async def send(self, *frames: session_pb2.SessionRequestFrame) -> None:
        await self.call.write(session_pb2.SessionRequest(frames=frames))

    async def last(self, stream: int) -> session_pb2.SessionResponseFrame:
        while stream not in self.over:
            message = await self.call.read()
            self.over |= {frame.stream: frame for frame in message.frames if frame.last}
        return self.over[stream]


def start(stream: int, **fields: Any) -> session_pb2.SessionRequestFrame:
    return session_pb2.SessionRequestFrame(stream=stream, start=ask(**fields))


async def test_each_request_of_a_session_counts(counted_in):
    async with engine(**counted_in) as caller:
        await ready(caller, counted_in)
        session = SessionOf(caller.stub, caller.auth(rule(Unit.REQUESTS, 2)))
        await session.send(start(1), start(2), start(3))
        ended = [await session.last(number) for number in (1, 2, 3)]
        assert [frame.HasField("error") for frame in ended] == [False, False, True]
        fault = fault_from_status(ended[2].error)
        assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        assert fault.quota == (("tenant:shop", f"2 requests in {DAY} s"),)
        session.call.cancel()


async def test_one_who_leaves_is_charged_what_passed_and_no_more(counted_in):
    async with engine(sim_speed=1.0, step_model="1000,0,0,0", **counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(rule(Unit.TOKENS, 20_000))
        call = caller.stub.StreamGenerate(
            ask(sampling={"max_tokens": 15_000}), metadata=mine, timeout=BOUND_S
        )
        assert await call.read()
        again = {"sampling": {"max_tokens": 15_000, "stop": ["a", "e", "i", "o", " "]}}
        fault = await caller.refusal(mine, **again)
        assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        call.cancel()

        async def room() -> bool:
            return await caller.admitted(mine, 1, sampling={"max_tokens": 1}) == 1

        await until(room)
        await caller.generate(mine, **again)


async def test_a_cancelled_request_of_a_session_gives_back_what_it_did_not_use(counted_in):
    async with engine(sim_speed=1.0, step_model="1000,0,0,0", **counted_in) as caller:
        await ready(caller, counted_in)
        mine = caller.auth(rule(Unit.TOKENS, 20_000))
        session = SessionOf(caller.stub, mine)
        await session.send(start(1, sampling={"max_tokens": 15_000}))
        await session.send(session_pb2.SessionRequestFrame(stream=1, cancel={}))
        last = await session.last(1)
        assert last.chunk.finish_reason == pb.FINISH_REASON_CANCELLED

        async def room() -> bool:
            return (
                await caller.admitted(
                    mine, 1, sampling={"max_tokens": 15_000, "stop": ["a", "e", "i", "o", " "]}
                )
                == 1
            )

        await until(room)
        session.call.cancel()
