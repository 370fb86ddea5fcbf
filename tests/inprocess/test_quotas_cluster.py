"""Quotas in front of a cluster: routers that share a Redis, one that goes away, and money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.host import Host
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.settings import Secret
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.provider import KEY, routes_file, simulator
from tests.support.quotas import (
    DAY,
    ask,
    asks_redis,
    engine,
    gate_of,
    let_through,
    refused,
    rule,
)
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import BOUND_S, until


@asynccontextmanager
async def caller_of(
    s: Cluster, host: Host | None, client: str = "web", quotas: Sequence[QuotaRule] = ()
) -> AsyncIterator[Any]:
    secret = await s.new_client(client, "generate")
    for quota in quotas:
        await s.set_quota("shop", client, quota)
    auth = bearer(await s.token(client, secret))
    async with s.channel(host or s.router) as channel:
        yield model_stub(channel), auth


async def test_a_router_counts_for_its_callers_and_its_engines_do_not_again(tmp_path):
    rules = (rule(Unit.REQUESTS, 3), rule(Unit.TOKENS, 100_000))
    async with cluster(tmp_path) as s, caller_of(s, None, quotas=rules) as (stub, auth):
        assert await let_through(stub, auth, 6, model=MODEL) == 3
        (engine,) = s.engines
        assert len(gate_of(s.router)._own) == 2
        assert len(gate_of(engine.host)._own) == 0
        counting = model_pb2.CountTokensRequest(model=MODEL, request=ask(model=""))
        assert (await refused(stub.CountTokens(counting, metadata=auth))).reason == (
            errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        )


async def test_without_redis_each_of_two_routers_lets_its_part_through(tmp_path):
    async with (
        cluster(tmp_path) as s,
        s.one_more_router() as other,
        caller_of(s, None, quotas=(rule(Unit.REQUESTS, 20, period=30 * DAY),)) as (stub, auth),
        s.channel(other) as channel,
    ):
        routers = (s.router, other)

        async def counted() -> bool:
            return all(gate_of(router)._processes() == 2 for router in routers)

        await until(counted)
        assert await let_through(stub, auth, 15, model=MODEL) == 10
        assert await let_through(model_stub(channel), auth, 15, model=MODEL) == 10


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if binary() is None:
        pytest.skip("no Redis server installed")
    with redis_server() as server:
        yield server


@pytest.mark.cluster
async def test_routers_with_redis_count_together(tmp_path, redis):
    shared = {"redis_url": redis.url}
    async with (
        cluster(tmp_path, router=shared) as s,
        s.one_more_router(**shared) as other,
        caller_of(s, None, quotas=(rule(Unit.REQUESTS, 20),)) as (stub, auth),
        s.channel(other) as channel,
    ):
        for router in (s.router, other):
            await asks_redis(router)
        both = (stub, model_stub(channel))
        asked = [let_through(one, auth, 15, model=MODEL) for one in both]
        assert sum(await asyncio.gather(*asked)) == 20


@pytest.mark.cluster
async def test_while_redis_is_away_requests_go_on_within_the_local_part(tmp_path, redis, caplog):
    shared = {"redis_url": redis.url}
    async with (
        cluster(tmp_path, router=shared) as s,
        s.one_more_router(**shared) as other,
        caller_of(s, None, quotas=(rule(Unit.REQUESTS, 20),)) as (stub, auth),
    ):
        await asks_redis(s.router)

        async def counted() -> bool:
            return gate_of(s.router)._processes() == 2

        await until(counted)
        assert await let_through(stub, auth, 8, model=MODEL) == 8
        redis.kill()
        # Eight of twenty were used by then, as far as it knows of each part too: six are left.
        assert await let_through(stub, auth, 20, model=MODEL) == 6
        told = [r for r in caplog.records if "counted by each process" in r.message]
        assert len(told) <= 2, "once for each router"
        with redis_server(port=redis.port, password=redis.password):
            await asks_redis(s.router)
            assert await let_through(stub, auth, 20, model=MODEL) == 0, "it was not forgotten"
            await asks_redis(other)
            async with s.channel(other) as channel:
                assert await let_through(model_stub(channel), auth, 5, model=MODEL) == 0


@pytest.mark.cluster
async def test_a_redis_that_hangs_holds_up_nobody(tmp_path, redis):
    async with engine(redis_url=redis.url) as caller:
        await asks_redis(caller.host)
        mine = caller.auth(rule(Unit.REQUESTS, 100))
        await caller.generate(mine)
        with redis.frozen():
            assert await caller.admitted(mine, 20) == 20
            shared = gate_of(caller.host)._redis
            assert shared is not None
            assert not shared.answers
        await asks_redis(caller.host)
        assert await caller.admitted(mine, 5) == 5


# Money


IN_WORDS = pb.GenerateRequest(
    model=MODEL,
    messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hello " * 10)])],
    sampling=pb.Sampling(max_tokens=20),
)
PRICES = {
    **dict.fromkeys(("input", "cached_input", "output"), 1_000_000),
    "source": "a test",
    "as_of": "2026-01-01",
}


@asynccontextmanager
async def with_cloud(directory: Path, **settings: Any) -> AsyncIterator[Cluster]:
    async with (
        simulator(KEY) as provider,
        cluster(directory, engines=(), router=settings) as s,
    ):
        route = {
            "provider": "simulator",
            "model": "sim-chat",
            "prices": PRICES,
        }
        models = routes_file(directory, provider.url, **{MODEL: route})
        await s.add_cloud(models, api_keys=Secret(f"simulator={KEY}"))
        await s.backends_ready(1)
        yield s


async def spend(stub: Any, auth: Any, most: int) -> tuple[int, int, Fault | None]:
    """How many of so many requests the cloud answered, what they cost, and the refusal."""
    count = cost = 0
    fault: Fault | None = None
    for _ in range(most):
        try:
            answer = await stub.Generate(IN_WORDS, metadata=auth, timeout=BOUND_S)
        except grpc.aio.AioRpcError as error:
            fault = fault_from_rpc_error(error)
            break
        count, cost = count + 1, cost + answer.receipt.cost_microusd
    return count, cost, fault


async def test_a_callers_quota_of_money_ends_its_use_of_the_cloud_and_nobody_elses(tmp_path):
    rules = {"web": (rule(Unit.COST, 2000, subject=Subject.CLIENT),)}
    async with (
        with_cloud(tmp_path) as s,
        caller_of(s, None, quotas=rules["web"]) as (stub, auth),
        caller_of(s, None, "app") as (_, other),
    ):
        count, cost, fault = await spend(stub, auth, 200)
        assert fault is not None
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert count
        assert 0 < cost <= 2000
        assert (await spend(stub, other, 3))[0] == 3


async def test_a_quota_of_money_of_another_model_is_no_hindrance(tmp_path):
    async with (
        with_cloud(tmp_path) as s,
        caller_of(s, None, quotas=(rule(Unit.COST, 1, model="other*"),)) as (stub, auth),
    ):
        assert (await spend(stub, auth, 5))[0] == 5


async def test_who_calls_the_cloud_proxy_directly_is_limited_too(tmp_path):
    async with (
        with_cloud(tmp_path) as s,
        caller_of(s, s.cloud, quotas=(rule(Unit.COST, 2000), rule(Unit.REQUESTS, 1000))) as (
            stub,
            auth,
        ),
    ):
        count, _, fault = await spend(stub, auth, 200)
        assert fault is not None
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert "quota" in fault.message
        assert count
