"""Budgets of the cloud proxy against the provider simulator, whose prices are invented: a prompt
token costs 1 micro-USD, a token of output 2."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from tests.support.auth import bearer
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import BOUND_S, until

DAY = 86_400.0
PATIENT: dict[str, Any] = {"first_token_timeout": 600.0, "inter_token_timeout": 600.0}
SHORT = {"sampling": pb.Sampling(max_tokens=18)}
MOST = 11 + 18 * 2
"""What "hello" may cost when SHORT: its prompt is 11 tokens at most."""
COST = 1 + 18 * 2
"""What the simulator bills for it."""
ASKED_FOR = 6
"""What a prompt of "hello" is estimated at where nobody states the usage."""


class Clock:
    """The seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now = 10 * DAY + 100.0

    def __call__(self) -> float:
        return self.now


def budgets_file(directory: Path, text: str) -> Path:
    path = directory / "budgets.yaml"
    path.write_text(text)
    return path


async def figures(proxy: Proxy, account: str) -> tuple[int | None, int | None]:
    """What metrics say was spent of an account, and is available."""
    address = f"http://{proxy.host.http_address}/metrics"
    async with aiohttp.ClientSession() as http, http.get(address) as response:
        text = await response.text()
    found: list[int | None] = []
    for name in ("spent", "available"):
        pattern = rf'^anabranch_cloud_budget_{name}\w*{{[^}}]*"{account}"[^}}]*}} (\S+)$'
        match = re.search(pattern, text, re.MULTILINE)
        found.append(int(float(match[1])) if match else None)
    return found[0], found[1]


async def refusal(proxy: Proxy, request: pb.GenerateRequest) -> Fault:
    with pytest.raises(Fault) as caught:
        await proxy.answer(request)
    return caught.value


async def test_what_an_answer_cost_is_charged_to_all_accounts(tmp_path):
    path = budgets_file(
        tmp_path,
        """
        all: {microusd: 1000}
        providers: {simulator: {microusd: 500}, openai: {microusd: 500}}
        tenants: {shop: {microusd: 300}, search: {microusd: 300}}
        """,
    )
    async with cloud_proxy(tmp_path, budgets_file=path) as proxy:
        answer = await proxy.answer(ask(**SHORT))
        assert answer.receipt.cost_microusd == COST
        assert await figures(proxy, "all") == (COST, 1000 - COST)
        assert await figures(proxy, "provider:simulator") == (COST, 500 - COST)
        assert await figures(proxy, "tenant:shop") == (COST, 300 - COST)
        assert await figures(proxy, "provider:openai") == (0, 500)
        assert await figures(proxy, "tenant:search") == (0, 300)


async def test_fifty_at_once_get_what_the_budget_covers_and_not_one_more(tmp_path):
    path = budgets_file(tmp_path, f"all: {{microusd: {20 * MOST + MOST - 1}}}")
    async with cloud_proxy(tmp_path, budgets_file=path, **PATIENT) as proxy:
        await proxy.provider.fault("hang", 50)
        asked = [asyncio.create_task(proxy.chunks(ask(**SHORT))) for _ in range(50)]

        async def rest_refused() -> bool:
            return sum(task.done() for task in asked) >= 30

        await until(rest_refused)
        await proxy.provider.until(lambda s: s["open"] == 20)
        assert await figures(proxy, "all") == (0, MOST - 1)
        for task in asked:
            if task.done():
                _, fault = task.result()
                assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
                assert fault.retry_after == 1.0, "the others may need less than is set aside"
            else:
                task.cancel()
        await proxy.provider.until(lambda s: s["open"] == 0)

        async def settled() -> bool:
            return await figures(proxy, "all") == (
                20 * ASKED_FOR,
                20 * MOST + MOST - 1 - 20 * ASKED_FOR,
            )

        await until(settled)
        assert (await proxy.provider.state())["seen"] == 20


async def test_what_fifty_at_once_cost_is_what_was_spent(tmp_path):
    path = budgets_file(tmp_path, "tenants: {shop: {microusd: 1000}}")
    async with cloud_proxy(tmp_path, budgets_file=path) as proxy:
        outcomes = await asyncio.gather(*(proxy.chunks(ask(**SHORT)) for _ in range(50)))
        answered = [chunks for chunks, fault in outcomes if fault is None]
        assert all(chunks[-1].receipt.cost_microusd == COST for chunks in answered)
        # As many as are covered at once, or more as the first ones cost less than they might.
        assert 1000 // MOST <= len(answered) <= 1000 // COST
        spent = len(answered) * COST
        assert await figures(proxy, "tenant:shop") == (spent, 1000 - spent)


async def test_a_refusal_says_what_is_exhausted_and_when_its_period_ends(tmp_path):
    clock = Clock()
    path = budgets_file(tmp_path, f"default_tenant: {{microusd: {MOST}, period: 1h}}")
    async with cloud_proxy(tmp_path, budgets_file=path, epoch_clock=clock) as proxy:
        await proxy.answer(ask(**SHORT))
        fault = await refusal(proxy, ask(**SHORT))
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.work is Work.NOT_DISPATCHED
        assert fault.retry_after == 3500.0
        assert [subject for subject, _ in fault.quota] == ["cloud budget tenant:shop"]
        assert "1970-01-11 01:00:00 UTC" in fault.quota[0][1]
        assert (await proxy.provider.state())["seen"] == 1
        # Tenants do not pay for each other.
        proxy.metadata = bearer(proxy.keys.token("generate", tenant="search"))
        await proxy.answer(ask(**SHORT))


async def test_a_new_period_brings_a_new_budget(tmp_path):
    clock = Clock()
    path = budgets_file(tmp_path, f"all: {{microusd: {MOST}, period: 1d}}")
    async with cloud_proxy(tmp_path, budgets_file=path, epoch_clock=clock) as proxy:
        await proxy.answer(ask(**SHORT))
        await refusal(proxy, ask(**SHORT))
        clock.now = 11 * DAY
        await proxy.answer(ask(**SHORT))
        assert await figures(proxy, "all") == (COST, MOST - COST)
        await refusal(proxy, ask(**SHORT))


@pytest.mark.parametrize(
    ("kind", "params", "spent"),
    [
        # Refused by status: nothing is billed.
        ("4xx", {}, 0),
        ("5xx", {"should_retry": False}, 0),
        ("429", {"retry_after": 60}, 0),
        # In the middle of an answer: what was received of it.
        ("cut", {"after": 2}, ASKED_FOR + 2 * 5),
        ("garbage", {"after": 0}, ASKED_FOR),
    ],
)
async def test_a_failure_costs_what_was_received_and_nothing_stays_set_aside(
    tmp_path, kind, params, spent
):
    path = budgets_file(tmp_path, "providers: {simulator: {microusd: 1000}}")
    async with cloud_proxy(tmp_path, budgets_file=path, attempts=1, **PATIENT) as proxy:
        await proxy.provider.fault(kind, **params)
        _, fault = await proxy.chunks(ask(**SHORT))
        assert fault is not None
        assert await figures(proxy, "provider:simulator") == (spent, 1000 - spent)


async def test_an_attempt_that_may_be_billed_is_charged_with_the_one_that_answers(tmp_path):
    path = budgets_file(tmp_path, "all: {microusd: 1000}")
    async with cloud_proxy(tmp_path, budgets_file=path, **PATIENT) as proxy:
        await proxy.provider.fault(
            "error_after_200", error={"message": "x", "type": "server_error"}
        )
        answer = await proxy.answer(ask(**SHORT))
        assert answer.receipt.cost_microusd == COST
        spent = COST + ASKED_FOR
        assert await figures(proxy, "all") == (spent, 1000 - spent)


async def test_a_cancelled_request_is_charged_what_it_had_received(tmp_path):
    path = budgets_file(tmp_path, "all: {microusd: 1000}")
    async with cloud_proxy(tmp_path, budgets_file=path, **PATIENT) as proxy:
        await proxy.provider.fault("stall", after=2)
        call = proxy.stub.StreamGenerate(ask(**SHORT), metadata=proxy.metadata)
        text = ""
        while text != "[provider simulator]":
            text += (await call.read()).text
        assert await figures(proxy, "all") == (0, 1000 - MOST)
        call.cancel()
        spent = ASKED_FOR + 2 * 5

        async def charged() -> bool:
            return await figures(proxy, "all") == (spent, 1000 - spent)

        await until(charged)


async def test_where_prices_are_unknown_no_budget_can_be_kept(tmp_path):
    unpriced = {"unpriced": {"provider": "simulator", "model": "unlisted"}}
    path = budgets_file(tmp_path, "providers: {simulator: {usd: 1000}}")
    async with cloud_proxy(tmp_path, budgets_file=path, routes=unpriced) as proxy:
        fault = await refusal(proxy, ask(model="unpriced", **SHORT))
        assert fault.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
        assert fault.metadata["feature"] == "budgets"
        assert (await proxy.provider.state())["seen"] == 0
    path = budgets_file(tmp_path, "providers: {openai: {usd: 1000}}")
    async with cloud_proxy(tmp_path, budgets_file=path, routes=unpriced) as proxy:
        await proxy.answer(ask(model="unpriced", **SHORT))


async def test_the_whole_worst_case_must_be_covered(tmp_path):
    path = budgets_file(tmp_path, f"all: {{microusd: {3 * MOST}}}")
    async with cloud_proxy(tmp_path, budgets_file=path) as proxy:
        # Without a limit of its own it may fill the model's context.
        assert "smaller than what this request may cost" in (await refusal(proxy, ask())).message
        several = pb.Sampling(max_tokens=18, n=4)
        fault = await refusal(proxy, ask(sampling=several))
        assert fault.metadata["needed_microusd"] == str(11 + 4 * 36)
        assert (await proxy.provider.state())["seen"] == 0
        await proxy.answer(ask(**SHORT))


async def test_metrics_name_no_tenant_that_the_file_does_not(tmp_path):
    path = budgets_file(tmp_path, "{default_tenant: {usd: 1}, tenants: {search: {usd: 1}}}")
    async with cloud_proxy(tmp_path, budgets_file=path) as proxy:
        await proxy.answer(ask(**SHORT))
        assert await figures(proxy, "tenant:shop") == (None, None)
        assert await figures(proxy, "tenant:search") == (0, 1_000_000)


async def test_the_prices_told_to_routers_cover_what_the_providers_cache_takes_in(tmp_path):
    prices = {"input": 4, "cached_input": 1, "output": 9, "source": "x", "as_of": "2026-01-01"}
    routes = {
        "plain": {"provider": "simulator", "model": "a", "prices": prices},
        "caching": {"provider": "simulator", "model": "b", "prices": {**prices, "cache_write": 5}},
    }
    async with cloud_proxy(tmp_path, routes=routes) as proxy:
        listed = await proxy.stub.ListModels(
            model_pb2.ListModelsRequest(), metadata=proxy.metadata, timeout=BOUND_S
        )
        told = {model.name: model.prices for model in listed.models}
        assert told["plain"] == pb.TokenPrices(input=4, cached_input=1, output=9)
        assert told["caching"] == pb.TokenPrices(input=5, cached_input=1, output=9)


def held(redis: RedisServer) -> list[int]:
    """What each proxy holds of everything's budget."""
    with redis.client() as own:
        names = own.keys("anabranch:provider-budget:*all")
        entries = own.hgetall(names[0]) if names else {}
    return [int(value) for name, value in entries.items() if name.startswith(b"held:")]


@pytest.mark.cluster
@pytest.mark.skipif(binary() is None, reason="no Redis server installed")
async def test_proxies_that_share_a_redis_share_a_budget_and_give_back_what_is_left(tmp_path):
    budget = 10 * MOST
    path = budgets_file(tmp_path, f"all: {{microusd: {budget}, period: 366d}}")
    with redis_server() as redis:
        shared = {"budgets_file": path, "redis_url": redis.url}
        (tmp_path / "other").mkdir()
        answered = 0
        async with (
            cloud_proxy(tmp_path, **shared) as one,
            cloud_proxy(tmp_path / "other", **shared) as two,
        ):
            for proxy in (one, two) * 20:
                _, fault = await proxy.chunks(ask(**SHORT))
                answered += fault is None
                assert sum(held(redis)) <= budget
            assert len(held(redis)) == 2
            assert 0 < answered * COST <= budget
            spent = [(await figures(proxy, "all"))[0] for proxy in (one, two)]
            assert all(spent)
            assert spent[0] + spent[1] == answered * COST
        assert sum(held(redis)) == answered * COST


@pytest.mark.cluster
@pytest.mark.skipif(binary() is None, reason="no Redis server installed")
async def test_without_redis_what_is_leased_is_spent_and_then_nothing(tmp_path):
    path = budgets_file(tmp_path, f"all: {{microusd: {100 * MOST}, period: 366d}}")
    with redis_server() as redis:
        async with cloud_proxy(tmp_path, budgets_file=path, redis_url=redis.url) as proxy:
            await proxy.answer(ask(**SHORT))
            redis.kill()
            # Some more are covered by what the proxy holds, but not all that the budget would.
            for _ in range(100):
                _, fault = await proxy.chunks(ask(**SHORT))
                if fault is not None:
                    break
            assert fault is not None
            assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
            assert fault.retry_after == 1.0
