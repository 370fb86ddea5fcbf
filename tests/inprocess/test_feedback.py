"""Callers rate their answers, each its own, at whichever router gave them: over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from anabranch import AsyncClient, Client, InvalidRequestError, NotFoundError
from anabranch.cli import main
from anabranch.errors import AnabranchError
from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.host import Host
from services.chassis.settings import Secret
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.provider import KEY, routes_file, simulator
from tests.support.redis import binary, redis_server
from tests.support.waiting import BOUND_S

LABELS = {"gen_ai_request_model": MODEL, "anabranch_tier": "local"}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def caller(
    running: Cluster, stack: AsyncExitStack, client_id: str, tenant: str = "shop"
) -> AsyncClient:
    """A new client of the router."""
    assert running.router is not None
    secret = await running.new_client(client_id, "generate", tenant=tenant)
    token = await running.token(client_id, secret)
    return await stack.enter_async_context(AsyncClient(running.router.address, token=token))


async def measured(host: Host, name: str, **labels: str) -> dict[str, float]:
    """The samples of a metric with these labels, by name and what else distinguishes them."""

    def read() -> str:
        with urllib.request.urlopen(
            f"http://{host.http_address}/metrics", timeout=BOUND_S
        ) as answer:
            return str(answer.read().decode())

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            if sample.name.startswith(name) and labels.items() <= sample.labels.items():
                rest = {k: v for k, v in sample.labels.items() if k not in labels}
                found["".join([sample.name.removeprefix(name), *rest.values()])] = sample.value
    return found


async def refused(call: Any) -> AnabranchError:
    with pytest.raises(AnabranchError) as caught:
        await call
    return caught.value


async def test_ratings_and_completions_are_counted_once_by_model_and_tier(running, stack):
    shop = await caller(running, stack, "shop-web")
    answers = await asyncio.gather(
        *(shop.generate(model=MODEL, messages=f"n {n}", max_tokens=3) for n in range(5))
    )
    for answer, rating in zip(answers, (5, 4, 4, 1, 3), strict=True):
        await shop.feedback(answer, rating=rating, completed=rating > 2)
        await shop.feedback(answer, rating=rating, completed=rating > 2)
    rating = await measured(running.router, "anabranch_router_feedback_rating", **LABELS)
    assert rating["_sum"] == 17
    assert rating["_count"] == 5
    buckets = {k.removeprefix("_bucket"): v for k, v in rating.items() if k.startswith("_bucket")}
    assert buckets == {"1.0": 1, "2.0": 1, "3.0": 2, "4.0": 4, "5.0": 5, "+Inf": 5}
    completed = await measured(
        running.router, "anabranch_router_feedback_completed_total", **LABELS
    )
    assert completed == {"true": 4, "false": 1}


async def test_the_half_that_was_left_out_may_follow_and_nothing_is_taken_back(running, stack):
    shop = await caller(running, stack, "shop-web")
    async with shop.stream(model=MODEL, messages="hello", max_tokens=3) as stream:
        await stream.finish()
    await shop.feedback(stream, rating=2)
    error = await refused(shop.feedback(stream, rating=3, completed=True))
    assert isinstance(error, InvalidRequestError)
    assert error.reason == "ALREADY_EXISTS"
    await shop.feedback(stream.request_id, completed=False)
    completed = await measured(running.router, "anabranch_router_feedback_completed_total")
    assert list(completed.values()) == [1], "the refused half was not counted"


async def test_nobody_learns_of_another_clients_answer(running, stack):
    shop = await caller(running, stack, "shop-web")
    sibling = await caller(running, stack, "shop-app")
    rival = await caller(running, stack, "rival-web", tenant="rival")
    answer = await shop.generate(model=MODEL, messages="hello", max_tokens=3)
    said = set()
    for other in (sibling, rival):
        for request_id in (answer.request_id, "never-was"):
            error = await refused(other.feedback(request_id, rating=1))
            assert isinstance(error, NotFoundError)
            said.add(str(error))
    assert len(said) == 1
    assert await measured(running.router, "anabranch_router_feedback_rating") == {}
    # The same id, of another client's own request, is another answer.
    await rival.generate(model=MODEL, messages="hello", max_tokens=3, request_id=answer.request_id)
    await rival.feedback(answer, rating=1)
    await shop.feedback(answer, rating=5)


async def test_requests_that_failed_or_still_run_are_not_to_be_judged(running, stack):
    shop = await caller(running, stack, "shop-web")
    request_id = uuid.uuid4().hex
    await refused(shop.generate(model="no-such", messages="hello", request_id=request_id))
    assert (await refused(shop.feedback(request_id, rating=1))).reason == "NOT_FOUND"
    async with shop.stream(
        model=MODEL, messages="hello", max_tokens=30_000, ignore_eos=True
    ) as stream:
        await anext(stream)
        running.engines[0].simulation.slowdown = 1000
        assert (await refused(shop.feedback(stream, rating=1))).reason == "NOT_FOUND"
        running.engines[0].simulation.slowdown = 1


async def test_an_id_that_the_router_chose_is_told_and_can_be_judged(running):
    secret = await running.new_client("shop-web", "generate")
    metadata = bearer(await running.token("shop-web", secret))
    async with running.channel(running.router) as channel:
        stub = model_stub(channel)
        request = pb.GenerateRequest(model=MODEL, prompt="hello")
        request.sampling.max_tokens = 3
        whole = await stub.Generate(request, metadata=metadata)
        chunks = [c async for c in stub.StreamGenerate(request, metadata=metadata)]
        assert whole.request_id
        assert chunks[0].request_id not in ("", whole.request_id)
        for request_id in (whole.request_id, chunks[0].request_id):
            await stub.Feedback(
                model_pb2.FeedbackRequest(request_id=request_id, completed=True),
                metadata=metadata,
            )


async def test_every_violation_is_named_at_once(running, stack):
    shop = await caller(running, stack, "shop-web")
    for arguments, fields in (
        (("", {}), {"request_id", "rating"}),
        (("with blank", {"rating": 6}), {"request_id", "rating"}),
        (("x" * 129, {"rating": 0, "completed": True}), {"request_id", "rating"}),
        (("r-1", {"rating": -(2**31)}), {"rating"}),
    ):
        request_id, said = arguments
        error = await refused(shop.feedback(request_id, **said))
        assert isinstance(error, InvalidRequestError)
        assert {v.field for v in error.violations} == fields


async def test_backends_send_callers_to_the_router(running, tmp_path):
    secret = await running.new_client("shop-web", "generate")
    metadata = bearer(await running.token("shop-web", secret))
    async with simulator(KEY) as provider:
        routes = routes_file(tmp_path, provider.url)
        cloud = await running.add_cloud(routes, api_keys=Secret(f"simulator={KEY}"))
        for host in (running.engines[0].host, cloud):
            async with AsyncClient(host.address, token=metadata[0][1].split()[1]) as direct:
                error = await refused(direct.feedback("r-1", rating=5))
            assert error.reason == "UNSUPPORTED"
            assert "router" in error.message


async def test_the_operator_can_switch_it_off(tmp_path, stack):
    async with cluster(tmp_path, router={"feedback_answers": 0}) as running:
        shop = await caller(running, stack, "shop-web")
        answer = await shop.generate(model=MODEL, messages="hello", max_tokens=3)
        error = await refused(shop.feedback(answer, rating=5))
        assert error.reason == "UNSUPPORTED"
        assert "switched it off" in error.message


async def test_repeated_answers_can_be_judged_by_each_who_got_them(tmp_path, stack):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\ntenants: {shop: {cache: true}}\n")
    async with cluster(tmp_path, router={"policy": f"file:{policy}"}) as running:
        callers = [await caller(running, stack, f"shop-{n}") for n in range(3)]

        async def ask(one: AsyncClient) -> Any:
            return await one.generate(model=MODEL, messages="hi", max_tokens=30, temperature=0)

        together = await asyncio.gather(*map(ask, callers[:2]))
        later = await ask(callers[2])
        assert later.receipt.cache is not None
        for one, answer in zip(callers, (*together, later), strict=True):
            await one.feedback(answer, rating=5)
        for one in callers[:2]:
            assert (await refused(one.feedback(later, rating=1))).reason == "NOT_FOUND"
        rating = await measured(running.router, "anabranch_router_feedback_rating", **LABELS)
        assert rating["_count"] == 3


async def test_blocking_code_and_the_command_line_say_it_too(running):
    secret = await running.new_client("shop-web", "generate")
    token = await running.token("shop-web", secret)
    address = running.router.address

    def run(*arguments: str) -> Result:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        environment = {**clean, "ANABRANCH_TOKEN": token}
        return CliRunner().invoke(main, ["--target", address, *arguments], env=environment)

    def people() -> None:
        with Client(address, token=token) as client:
            client.feedback(client.generate(model=MODEL, messages="hi", max_tokens=3), rating=4)
        asked = run("generate", "hello", "--max-tokens", "3")
        request_id = asked.stderr.rpartition(" · request ")[2].strip()
        done = run("feedback", request_id, "--rating", "4", "--completed")
        assert (done.exit_code, done.stdout) == (0, "recorded\n")
        asked = run("generate", "hello", "--max-tokens", "3", "--json")
        request_id = json.loads(asked.stdout)["request_id"]
        done = run("feedback", request_id, "--not-completed", "--json")
        assert json.loads(done.stdout) == {
            "request_id": request_id,
            "rating": None,
            "completed": False,
        }
        unknown = run("feedback", "never-was", "--rating", "4")
        assert unknown.exit_code == 4
        assert "NOT_FOUND" in unknown.stderr
        for nothing in ((), ("--rating", "6"), ("--rating", "good")):
            assert run("feedback", request_id, *nothing).exit_code == 2

    await asyncio.to_thread(people)
    rating = await measured(running.router, "anabranch_router_feedback_rating", **LABELS)
    assert rating["_sum"] == 8


@pytest.mark.cluster
@pytest.mark.skipif(binary() is None, reason="no Redis server installed")
async def test_with_redis_any_router_takes_it(tmp_path, stack):
    with redis_server() as server:
        async with (
            cluster(tmp_path, router={"redis_url": server.url}) as running,
            running.one_more_router(redis_url=server.url) as other,
        ):
            secret = await running.new_client("shop-web", "generate")
            token = await running.token("shop-web", secret)
            assert running.router is not None
            here = await stack.enter_async_context(AsyncClient(running.router.address, token=token))
            there = await stack.enter_async_context(AsyncClient(other.address, token=token))
            answer = await here.generate(model=MODEL, messages="hello", max_tokens=3)
            await there.feedback(answer, rating=5)
            assert (await refused(here.feedback(answer, rating=4))).reason == "ALREADY_EXISTS"
            assert await measured(running.router, "anabranch_router_feedback_rating") == {}
            rating = await measured(other, "anabranch_router_feedback_rating", **LABELS)
            assert rating["_sum"] == 5
