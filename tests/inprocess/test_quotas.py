"""Quotas at the door of real services: who exceeds one is refused with how long to wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2, model_pb2_grpc, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.authn import Verifier
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error, fault_from_status
from services.chassis.host import Host
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.settings import Secret
from services.local_engine.app import running
from services.local_engine.settings import Settings
from services.local_engine.sim_engine import SimEngine
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.local_keys import LocalKeys
from tests.support.provider import KEY, routes_file, simulator
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import BOUND_S, until

DAY = 86_400
HELD_UP = 1e9
"""Steps take so many times longer: what runs ends for its caller's sake alone."""


def rule(
    unit: Unit, limit: int, *, model: str = "", subject: Subject = Subject.TENANT, period: int = DAY
) -> QuotaRule:
    """So much at once, and then as good as nothing while a test runs."""
    return QuotaRule(subject, unit, limit, period, limit, model)


def ask(**fields: Any) -> pb.GenerateRequest:
    sampling = {"max_tokens": 8, "ignore_eos": True} | fields.pop("sampling", {})
    return pb.GenerateRequest(
        **{"model": "river", "prompt": "p" * 40, "sampling": pb.Sampling(**sampling)} | fields
    )


class Caller:
    """Of one engine, with quotas in its token."""

    def __init__(self, host: Host, channel: grpc.aio.Channel, keys: LocalKeys) -> None:
        self.host = host
        self.stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        self._keys = keys

    def auth(self, *rules: QuotaRule, client: str = "web", tenant: str = "shop") -> Any:
        token = self._keys.token("generate", client_id=client, tenant=tenant, quotas=rules)
        return bearer(token)

    async def generate(self, auth: Any, **fields: Any) -> pb.GenerateResponse:
        answer: pb.GenerateResponse = await self.stub.Generate(
            ask(**fields), metadata=auth, timeout=BOUND_S
        )
        return answer

    async def refusal(self, auth: Any, **fields: Any) -> Fault:
        return await refused(self.stub.Generate(ask(**fields), metadata=auth, timeout=BOUND_S))

    async def admitted(self, auth: Any, most: int = 100, **fields: Any) -> int:
        """How many of so many requests, one after another, are let through."""
        return await let_through(self.stub, auth, most, **fields)


async def refused(call: Any) -> Fault:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return fault_from_rpc_error(failed.value)


async def let_through(stub: Any, auth: Any, most: int, **fields: Any) -> int:
    count = 0
    for _ in range(most):
        try:
            await stub.Generate(ask(**fields), metadata=auth, timeout=BOUND_S)
        except grpc.aio.AioRpcError as error:
            fault = fault_from_rpc_error(error)
            assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED, fault
        else:
            count += 1
    return count


@asynccontextmanager
async def engine(
    simulation: SimEngine | None = None, keys: LocalKeys | None = None, **changes: Any
) -> AsyncIterator[Caller]:
    keys = keys or LocalKeys()
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "engine": "sim",
        "served_model_name": "river",
        "model_aliases": ("lake",),
        "sim_speed": 0.0,
        "drain_timeout": 0.1,
    }
    settings = Settings(**fields | changes)
    async with (
        running(settings, key_source=keys, engine=simulation) as host,
        open_channel(host.address) as channel,
    ):
        yield Caller(host, channel, keys)


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


def gate_of(host: Host) -> QuotaGate:
    assert host.model_service is not None
    gate = host.model_service._quotas
    assert gate is not None
    return gate


async def asks_redis(host: Host) -> None:
    """Waits until a process counts together with others."""

    async def there() -> bool:
        shared = gate_of(host)._redis
        return shared is not None and shared.answers

    await until(there)


async def ready(caller: Caller, settings: dict[str, Any]) -> None:
    if settings:
        await asks_redis(caller.host)


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


# In front of a cluster


@contextmanager
def quotas_of(**rules: Sequence[QuotaRule]) -> Iterator[None]:
    """Tokens of these clients carry these rules."""
    read = Verifier._principal

    def reading(self: Verifier, claims: Any) -> Any:
        found = read(self, claims)
        return replace(found, quotas=tuple(rules.get(found.client_id, ())))

    with mock.patch.object(Verifier, "_principal", reading):
        yield


@asynccontextmanager
async def caller_of(s: Cluster, host: Host | None, client: str = "web") -> AsyncIterator[Any]:
    secret = await s.new_client(client, "generate")
    auth = bearer(await s.token(client, secret))
    async with s.channel(host or s.router) as channel:
        yield model_stub(channel), auth


async def test_a_router_counts_for_its_callers_and_its_engines_do_not_again(tmp_path):
    rules = (rule(Unit.REQUESTS, 3), rule(Unit.TOKENS, 100_000))
    with quotas_of(web=rules):
        async with cluster(tmp_path) as s, caller_of(s, None) as (stub, auth):
            assert await let_through(stub, auth, 6, model=MODEL) == 3
            (engine,) = s.engines
            assert len(gate_of(s.router)._own) == 2
            assert len(gate_of(engine.host)._own) == 0
            counting = model_pb2.CountTokensRequest(model=MODEL, request=ask(model=""))
            assert (await refused(stub.CountTokens(counting, metadata=auth))).reason == (
                errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
            )


async def test_without_redis_each_of_two_routers_lets_its_part_through(tmp_path):
    with quotas_of(web=(rule(Unit.REQUESTS, 20, period=366 * DAY),)):
        async with (
            cluster(tmp_path) as s,
            s.one_more_router() as other,
            caller_of(s, None) as (stub, auth),
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
    with quotas_of(web=(rule(Unit.REQUESTS, 20),)):
        async with (
            cluster(tmp_path, router=shared) as s,
            s.one_more_router(**shared) as other,
            caller_of(s, None) as (stub, auth),
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
    with quotas_of(web=(rule(Unit.REQUESTS, 20),), app=(rule(Unit.REQUESTS, 10),)):
        async with (
            cluster(tmp_path, router=shared) as s,
            s.one_more_router(**shared) as other,
            caller_of(s, None) as (stub, auth),
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
    with quotas_of(**rules):
        async with (
            with_cloud(tmp_path) as s,
            caller_of(s, None) as (stub, auth),
            caller_of(s, None, "app") as (_, other),
        ):
            count, cost, fault = await spend(stub, auth, 200)
            assert fault is not None
            assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
            assert count
            assert 0 < cost <= 2000
            assert (await spend(stub, other, 3))[0] == 3


async def test_a_quota_of_money_of_another_model_is_no_hindrance(tmp_path):
    with quotas_of(web=(rule(Unit.COST, 1, model="other*"),)):
        async with with_cloud(tmp_path) as s, caller_of(s, None) as (stub, auth):
            assert (await spend(stub, auth, 5))[0] == 5


async def test_who_calls_the_cloud_proxy_directly_is_limited_too(tmp_path):
    with quotas_of(web=(rule(Unit.COST, 2000), rule(Unit.REQUESTS, 1000))):
        async with with_cloud(tmp_path) as s, caller_of(s, s.cloud) as (stub, auth):
            count, _, fault = await spend(stub, auth, 200)
            assert fault is not None
            assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
            assert "quota" in fault.message
            assert count
