"""What a request may cost, wherever it goes: its own limit, its tenant's budget, a proxy's sums."""

from dataclasses import replace

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from services.cloud_proxy import estimates
from services.router.asking import billed_tokens_at_most
from services.router.core.policy import HedgeRules, ModelRules
from tests.inprocess.test_routing_policy import (
    CLOUD,
    HEDGING,
    ONLY_CLOUD,
    PLAIN,
    PRICES,
    answered,
    late,
    pool_of,
    spending,
)

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
        assert estimates.affordable_tokens(sent, PRICES, given) >= 300
        await answer.last()


async def test_a_cost_below_zero_is_none():
    async with pool_of(spending(400), cloud=CLOUD) as (s, at):
        answer = s.ask(routing=ONLY_CLOUD, sampling=SHORT)
        await answered(at["cloud"], cost=-5)
        await answer.last()
        (book,) = [
            known.book for known in s.routing.spending._budget._accounts.values() if known.book
        ]
        assert (book.spent, book.reserved) == (0, 0)
