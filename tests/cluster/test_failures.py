"""Real processes and a real Consul: engines come, die and leave, Consul goes and returns."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from anabranch import AsyncClient
from anabranch.types import Answer
from tests.support.auth import until
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.recipes import SIM_MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def sim(name: str, **settings: str) -> EngineSpec:
    return EngineSpec(name, EngineKind.SIM, SIM_MODEL, settings)


def client(cluster: Cluster, client_id: str = "demo") -> AsyncClient:
    return AsyncClient(
        cluster.router,
        auth_target=cluster.auth,
        client_id=client_id,
        client_secret=cluster.credentials[client_id],
    )


@pytest.fixture
async def two_engines(tmp_path: Path) -> AsyncIterator[Cluster]:
    # Slow enough that what is to happen in the midst of answers does, on a busy machine as well.
    engines = [sim(name, SIM_SLOWDOWN="3") for name in ("sim-1", "sim-2")]
    async with Cluster(tmp_path, engines=engines, cloud=False) as cluster:
        yield cluster


async def busiest(cluster: Cluster) -> str:
    """The name of the engine that has work; waits until one has."""
    found: list[str] = []

    async def one_has_work() -> bool:
        found[:] = [b.backend_id for b in await cluster.backends() if b.in_flight]
        return bool(found)

    await until(one_has_work)
    return found[0]


async def ask(caller: AsyncClient, prompt: str, tokens: int) -> Answer:
    return await caller.generate(model=SIM_MODEL, prompt=prompt, max_tokens=tokens, ignore_eos=True)


async def test_a_new_engine_is_discovered_and_gets_work(two_engines):
    await two_engines.add_engine(sim("sim-3"))
    await two_engines.until_backends(3)
    async with client(two_engines) as caller:
        answers = await asyncio.gather(*(ask(caller, f"question {n}", 100) for n in range(30)))
    assert {a.receipt.backend_id for a in answers} == {"sim-1", "sim-2", "sim-3"}


async def test_an_engine_killed_before_the_first_token_costs_nothing_but_time(tmp_path):
    # A prefill of many seconds: the kill comes before any token.
    slow = {"SIM_SLOWDOWN": "50"}
    async with (
        Cluster(tmp_path, engines=(sim("sim-1", **slow), sim("sim-2", **slow)), cloud=False) as c,
        client(c) as caller,
    ):
        asked = asyncio.ensure_future(ask(caller, "river " * 3000, 5))
        victim = await busiest(c)
        await c.kill(victim)
        answer = await asked
    assert len(answer.choices[0].token_ids) == 5
    assert [a.error_reason for a in answer.receipt.attempts] == ["BACKEND_LOST", ""]
    assert answer.receipt.attempts[0].backend_id == victim
    assert answer.receipt.resumed_at_tokens == ()


async def test_an_engine_killed_mid_stream_loses_and_repeats_no_token(two_engines):
    async with client(two_engines) as caller:
        undisturbed = await asyncio.gather(*(ask(caller, f"story {n}", 400) for n in range(8)))
        streams = [
            caller.stream(model=SIM_MODEL, prompt=f"story {n}", max_tokens=400, ignore_eos=True)
            for n in range(8)
        ]

        async def read(stream, started: asyncio.Event) -> Answer:
            async with stream:
                count = 0
                async for chunk in stream:
                    count += len(chunk.token_ids)
                    if count > 20:
                        started.set()
                return await stream.finish()

        began = [asyncio.Event() for _ in streams]
        reading = [asyncio.ensure_future(read(s, e)) for s, e in zip(streams, began, strict=True)]
        for event in began:
            await event.wait()
        victim = await busiest(two_engines)
        await two_engines.kill(victim)
        answers = await asyncio.gather(*reading)
    resumed = [a for a in answers if a.receipt.resumed_at_tokens]
    assert resumed
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert answer.choices[0].token_ids == expected.choices[0].token_ids
        assert answer.text == expected.text
        assert answer.usage.completion_tokens == 400
    for answer in resumed:
        assert answer.receipt.backend_id != victim


async def test_the_last_engine_killed_mid_stream_ends_the_stream_with_a_count(tmp_path):
    from anabranch.errors import AnabranchError

    async with (
        Cluster(tmp_path, engines=(sim("sim-1"),), cloud=False) as cluster,
        client(cluster) as caller,
    ):
        seen = 0
        with pytest.raises(AnabranchError) as caught:
            async with caller.stream(
                model=SIM_MODEL, prompt="story", max_tokens=4000, ignore_eos=True
            ) as stream:
                async for chunk in stream:
                    seen += len(chunk.token_ids)
                    if seen > 20:
                        await cluster.kill("sim-1")
    assert caught.value.reason == "BACKEND_LOST"
    assert caught.value.tokens_delivered == seen
    assert not caught.value.may_retry


async def test_consul_may_stop_and_return(two_engines):
    async with client(two_engines) as caller:
        await two_engines.kill("consul")
        answers = await asyncio.gather(*(ask(caller, f"q {n}", 20) for n in range(10)))
        assert len(answers) == 10
        assert len(await two_engines.backends()) == 2

        # A dev-mode Consul remembers nothing: whoever is there must register again.
        await two_engines.restart("consul")
        await two_engines.add_engine(sim("sim-3"))
        await two_engines.until_backends(3)
        assert {b.backend_id for b in await two_engines.backends()} == {
            "sim-1", "sim-2", "sim-3"
        }  # fmt: skip
        assert (await ask(caller, "after", 20)).text


async def test_a_drain_under_load_loses_none_of_200_streams(two_engines):
    async with client(two_engines) as caller:
        working = [asyncio.ensure_future(ask(caller, f"s {n}", 300)) for n in range(200)]

        async def both_are_busy() -> bool:
            return all(b.in_flight > 20 for b in await two_engines.backends())

        await until(both_are_busy, during=working)
        assert await two_engines.end("sim-1") == 0
        answers = await asyncio.gather(*working, return_exceptions=True)
    lost = [a for a in answers if isinstance(a, BaseException)]
    assert lost == []
    assert all(len(a.choices[0].token_ids) == 300 for a in answers)
    # Drained, not resumed: each stream ended where it ran.
    moved = [a.receipt for a in answers if a.receipt.resumed_at_tokens]
    assert moved == []
    assert {a.receipt.backend_id for a in answers} == {"sim-1", "sim-2"}


async def test_a_router_that_leaves_finishes_its_streams_first(two_engines):
    async with client(two_engines) as caller:
        working = [asyncio.ensure_future(ask(caller, f"s {n}", 300)) for n in range(50)]
        await busiest(two_engines)
        assert await two_engines.end("router") == 0
        answers = await asyncio.gather(*working)
    assert all(len(a.choices[0].token_ids) == 300 for a in answers)


async def test_auth_down_leaves_live_tokens_working(two_engines):
    async with client(two_engines) as caller:
        assert (await ask(caller, "before", 10)).text
        await two_engines.kill("auth")
        assert (await ask(caller, "after", 10)).text


async def test_a_stopped_cluster_leaves_no_process(tmp_path):
    cluster = Cluster(tmp_path, engines=(sim("sim-1"),), cloud=True)
    await cluster.start()
    records = [running.record for running in cluster.processes.values()]
    assert len(records) == 6
    assert await cluster.stop() == []
    assert [record.name for record in records if record.members()] == []
