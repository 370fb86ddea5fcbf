"""What a request may cost, wherever it goes: its own limit, its tenant's budget, a proxy's sums."""

from dataclasses import replace

import grpc
import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from services.cloud_proxy import estimates
from services.cloud_proxy.profiles import Prices
from services.router.asking import billed_tokens_at_most
from services.router.core.policy import HedgeRules, ModelRules
from tests.support.auth import until
from tests.support.policy_scene import (
    BUSY,
    CLOUD,
    FREE,
    HEDGING,
    ONLY_CLOUD,
    PLAIN,
    PRICES,
    STOP,
    answered,
    has_running,
    late,
    pool_of,
    spending,
)
from tests.support.scripted_backends import text_chunk

CLOUD_FIRST = pb.Routing(residency=pb.RESIDENCY_CLOUD_FIRST)
SHORT = pb.Sampling(max_tokens=300)
DOWN = Fault(errors_pb2.ERROR_REASON_INTERNAL, "down", work=Work.MAYBE_BILLED)


async def test_what_the_cloud_may_cost_is_not_said_to_who_comes_after_it():
    async with pool_of(spending(1000), local={}, cloud=CLOUD) as (s, at):
        s.ask(routing=ONLY_CLOUD, sampling=SHORT)
        await answered(at["cloud"], cost=1)  # by now there is money at hand
        answer = s.ask(routing=CLOUD_FIRST, sampling=SHORT)
        await at["cloud"].refuse(Fault(errors_pb2.ERROR_REASON_OVERLOADED, "full"))
        request = await answered(at["local"])
        assert not request.routing.HasField("max_cost_microusd")
        await answer.last()


async def test_all_attempts_together_keep_within_what_a_request_may_cost():
    routing = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY, max_cost_microusd=1000)
    async with pool_of(PLAIN, a=CLOUD, b=CLOUD) as (s, at):
        answer = s.ask(routing=routing, sampling=SHORT)
        first, second = await late(s, at)
        number, request = await first.next_start()
        assert request.routing.max_cost_microusd == 1000
        await first.fails(number, DOWN)
        # Nobody knows what the first one cost: all that it might have counts.
        request = await answered(second, cost=300)
        assert 600 <= request.routing.max_cost_microusd < 700
        await answer.last()


async def test_a_hedge_too_keeps_within_it():
    routing = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY, max_cost_microusd=600)
    policy = replace(HEDGING, hedge=HedgeRules(enabled=True, share=1.0, after=1.0, soonest=0.0))
    async with pool_of(policy, a=CLOUD, b=CLOUD) as (s, at):
        answer = s.ask(routing=routing, sampling=SHORT)
        first, second = await late(s, at)
        number, _ = await first.next_start()
        (running,) = s.handler._exchanges
        running._hedge._send()
        assert not second.masks
        await first.fails(number, Fault(errors_pb2.ERROR_REASON_INVALID_REQUEST, "no"))
        await answer.fault()


async def test_a_refusal_names_the_model_as_its_caller_did():
    policy = replace(PLAIN, models={"river": ModelRules(local="river-small")})
    async with pool_of(policy, a={"models": ["river-small"]}) as (s, at):
        answer = s.ask(model="river")
        await at["a"].next_start()
        await at["a"].crash()
        assert (await answer.fault()).metadata["model"] == "river"


async def test_every_choice_is_paid_for():
    async with pool_of(spending(5000), cloud=CLOUD) as (s, at):
        answer = s.ask(routing=ONLY_CLOUD, sampling=pb.Sampling(max_tokens=300, n=4))
        request = await answered(at["cloud"])
        assert request.routing.max_cost_microusd >= 4 * 300
        await answer.last()


def _text(text: str) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])


def _image(**image) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(image=pb.Image(**image))])


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a word " * 1000},
        {"prompt": "河" * 1000},
        {"messages": [_text("a")] * 100},
        {"messages": [_text("long " * 500), _image(uri="https://a.example/b.png")]},
        {"messages": [_image(data=b"x" * 1000, media_type="image/png")] * 3},
        {"prompt": "p", "tools": [pb.Tool(name="t", parameters_json_schema="{}" * 2000)]},
        {"prompt": "p", "continuation": pb.Continuation(text="and " * 500)},
    ],
)
async def test_the_proxy_is_given_enough_for_all_that_was_asked_for(asked):
    request = pb.GenerateRequest(model="river", **asked)
    assert billed_tokens_at_most(request) >= estimates.prompt_tokens_at_most(request)
    async with pool_of(spending(10**6), cloud=CLOUD) as (s, at):
        answer = s.ask(**{"prompt": "", **asked}, routing=ONLY_CLOUD, sampling=SHORT)
        sent = await answered(at["cloud"])
        given = sent.routing.max_cost_microusd
        told = Prices(PRICES.input, PRICES.cached_input, PRICES.output, "a test", "2026-01-01")
        assert estimates.affordable_tokens(sent, told, given) >= 300
        await answer.last()


async def test_a_cost_below_zero_is_none():
    async with pool_of(spending(400), cloud=CLOUD) as (s, at):
        answer = s.ask(routing=ONLY_CLOUD, sampling=SHORT)
        await answered(at["cloud"], cost=-5)
        await answer.last()
        (book,) = [
            known.book
            for known in s.routing.spending.supply.ledger._accounts.values()
            if known.book
        ]
        assert (book.spent, book.reserved) == (0, 0)


async def test_a_budget_is_never_exceeded_and_what_was_not_used_comes_back():
    async with pool_of(spending(1000), cloud=CLOUD) as (s, at):
        small = {"routing": ONLY_CLOUD, "sampling": pb.Sampling(max_tokens=300)}
        first, second, third = s.ask(**small), s.ask(**small), s.ask(**small)
        number, request = await at["cloud"].next_start()
        # The proxy may not spend more than what was set aside.
        assert 300 <= request.routing.max_cost_microusd <= 333
        fourth = await s.ask(**small).fault()
        assert fourth.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert fourth.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fourth.retry_after
        assert fourth.quota
        receipt = pb.RouteReceipt(cost_microusd=10)
        await at["cloud"].send(text_chunk(number, 0, "x", 1, finish_reason=STOP, receipt=receipt))
        assert (await first.last()).receipt.cost_microusd == 10
        again = s.ask(**small)
        for _ in range(3):
            await answered(at["cloud"], cost=300)
        for answer in (second, third, again):
            await answer.last()
        assert (await s.ask(**small).fault()).reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED


async def test_without_money_a_request_stays_local_and_waits_there():
    async with pool_of(spending(10), local={}, cloud=CLOUD) as (s, at):
        await at["local"].send(load=BUSY)
        await until(lambda: has_running(s, "local"))
        answer = s.ask(sampling=pb.Sampling(max_tokens=300))
        assert not answer.ends
        await at["local"].send(load=FREE)
        await answered(at["local"])
        assert (await answer.last()).receipt.tier == pb.TIER_LOCAL


async def test_a_request_that_never_ran_costs_nothing():
    async with pool_of(spending(400), cloud=CLOUD) as (s, at):
        small = {"routing": ONLY_CLOUD, "sampling": pb.Sampling(max_tokens=300)}
        for _ in range(3):
            answer = s.ask(**small)
            await at["cloud"].refuse(Fault(errors_pb2.ERROR_REASON_INVALID_REQUEST, "no"))
            assert (await answer.fault()).reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
        answer = s.ask(**small)
        await answered(at["cloud"], cost=5)
        await answer.last()


async def test_where_prices_are_unknown_no_budget_covers_it():
    async with pool_of(spending(10**9), cloud={"tier": pb.TIER_CLOUD}) as (s, _):
        fault = await s.ask(routing=ONLY_CLOUD).fault()
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert "prices" in fault.message


async def test_a_requests_own_limit_is_kept_too():
    routing = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY, max_cost_microusd=5)
    async with pool_of(PLAIN, cloud=CLOUD) as (s, _):
        fault = await s.ask(routing=routing).fault()
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED


async def test_the_cheapest_provider_gets_it():
    dear = pb.TokenPrices(input=2_000_000, output=2_000_000)
    async with pool_of(PLAIN, dear={"tier": pb.TIER_CLOUD, "prices": dear}, cheap=CLOUD) as (s, at):
        for _ in range(3):
            answer = s.ask(routing=ONLY_CLOUD)
            await answered(at["cheap"])
            assert (await answer.last()).receipt.backend_id == "cheap"
