"""What the policy makes of requests: names, money, masks, hedges, repeats, prefixes.

The router's own parts in front of scripted backends; the decision itself is tested in tests/unit.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from services.router.core.policy import (
    AdmissionRules,
    Affinity,
    BreakerRules,
    Budget,
    ClassRules,
    HedgeRules,
    ModelRules,
    Objective,
    Policy,
    PriorityClass,
    RetryRules,
    TenantRules,
    Variant,
)
from services.router.explanation import explain
from tests.support.auth import until
from tests.support.scripted_backends import MODEL, scene, text_chunk

STOP = pb.FINISH_REASON_STOP
PLAIN = Policy(objective=Objective(ttft=1.0), slow_start=0.0)
BUSY = session_pb2.LoadReport(running=1, max_running=1, step_time={"nanos": 10_000_000})
FREE = session_pb2.LoadReport(running=0, max_running=1)
# A million tokens for a million micro-USD: a token costs one.
PRICES = pb.TokenPrices(input=1_000_000, cached_input=1_000_000, output=1_000_000)
ONLY_CLOUD = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY)


@asynccontextmanager
async def pool_of(policy: Policy, **backends):
    """A scene with these backends ready: names to the arguments of `Scene.backend`."""
    async with scene(policy=policy) as s:
        found = {name: await s.backend(name, **how) for name, how in backends.items()}
        s.list(*found.values())
        await s.ready(*found.values())
        yield s, found


CLOUD = {"tier": pb.TIER_CLOUD, "prices": PRICES}


async def answered(backend, *, cost: int = 0, reason: pb.FinishReason = STOP) -> pb.GenerateRequest:
    """The backend answers its next request with one token."""
    number, request = await backend.next_start()
    receipt = pb.RouteReceipt(cost_microusd=cost) if cost else None
    await backend.send(text_chunk(number, 0, "x", 1, finish_reason=reason, receipt=receipt))
    return request


# Names


async def test_each_tier_is_asked_under_its_own_name_for_the_model():
    rules = ModelRules(local="river-small", cloud="river-large")
    async with pool_of(
        replace(PLAIN, models={"river": rules}),
        local={"models": ["river-small"]},
        cloud={**CLOUD, "models": ["river-large"]},
    ) as (s, at):
        answer = s.ask(model="river")
        assert (await answered(at["local"])).model == "river-small"
        assert (await answer.last()).receipt.tier == pb.TIER_LOCAL
        answer = s.ask(model="river", routing=ONLY_CLOUD)
        assert (await answered(at["cloud"])).model == "river-large"
        receipt = (await answer.last()).receipt
        assert receipt.tier == pb.TIER_CLOUD
        assert not receipt.resolved_model


async def test_an_alias_stands_for_a_variant_and_the_receipt_says_which():
    policy = replace(PLAIN, aliases={"chat": (Variant(MODEL, 1.0),)})
    async with pool_of(policy, local={}) as (s, at):
        answer = s.ask(model="chat")
        assert (await answered(at["local"])).model == MODEL
        assert (await answer.last()).receipt.resolved_model == MODEL


async def test_the_same_affinity_key_always_gets_the_same_variant():
    policy = replace(PLAIN, aliases={"chat": (Variant("old", 1.0), Variant("new", 1.0))})
    async with pool_of(policy, local={"models": ["old", "new"]}) as (s, at):
        seen: dict[str, set[str]] = {}
        for turn in range(12):
            key = f"caller-{turn % 6}"
            answer = s.ask(model="chat", routing=pb.Routing(affinity_key=key))
            seen.setdefault(key, set()).add((await answered(at["local"])).model)
            await answer.last()
        assert all(len(models) == 1 for models in seen.values())
        assert set.union(*seen.values()) == {"old", "new"}


async def test_the_policys_names_are_listed_with_what_all_behind_them_can_do():
    policy = replace(
        PLAIN,
        models={"river": ModelRules(local="small", cloud="large")},
        aliases={"chat": (Variant("river", 1.0),), "nothing": (Variant("absent", 1.0),)},
    )
    text = [pb.CAPABILITY_RESUME_TEXT]
    async with pool_of(
        policy,
        local={"models": ["small"]},
        cloud={**CLOUD, "models": ["large"], "capabilities": text},
    ) as (s, _):
        listed = {info.name: info for info in await s.handler.list_models()}
        assert set(listed) == {"small", "large", "river", "chat"}
        assert set(listed["chat"].tiers) == {pb.TIER_LOCAL, pb.TIER_CLOUD}
        assert list(listed["river"].capabilities) == text
        assert listed["river"].backends == 2


async def test_tiers_that_differ_do_not_go_on_with_each_others_answers():
    rules = ModelRules(local="small", cloud="large", continue_in_cloud=False)
    async with pool_of(
        replace(PLAIN, models={"river": rules}),
        local={"models": ["small"]},
        cloud={**CLOUD, "models": ["large"]},
    ) as (s, at):
        answer = s.ask(model="river")
        number, _ = await at["local"].next_start()
        await at["local"].send(text_chunk(number, 0, "x", 1))
        await answer.has_chunks(1)
        await at["local"].crash()
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert fault.metadata["tokens_delivered"] == "1"


# What leaves


async def test_only_what_leaves_is_to_be_masked_as_the_tenants_rules_say():
    policy = replace(
        PLAIN, mask=frozenset({"phone"}), tenants={"shop": TenantRules(mask=frozenset({"email"}))}
    )
    async with pool_of(policy, local={}, cloud=CLOUD) as (s, at):
        s.ask()
        await answered(at["local"])
        s.ask(routing=ONLY_CLOUD)
        await answered(at["cloud"])
        assert at["local"].masks == [()]
        assert at["cloud"].masks == [(pb.PII_KIND_EMAIL,)]


async def test_a_tenant_without_the_cloud_never_leaves():
    policy = replace(PLAIN, tenants={"*": TenantRules(cloud=False)})
    async with pool_of(policy, local={}, cloud=CLOUD) as (s, at):
        fault = await s.ask(routing=ONLY_CLOUD).fault()
        assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED
        await at["local"].send(load=BUSY)
        await until(lambda: _has_running(s, "local"))
        answer = s.ask()
        await at["local"].send(load=FREE)
        await answered(at["local"])
        assert (await answer.last()).receipt.tier == pb.TIER_LOCAL
        assert not at["cloud"].masks


async def _has_running(s, name: str, count: int = 1) -> bool:
    return s.pool.uplink(name).backend.tracker.view().load.running == count


# Money


def spending(budget: int) -> Policy:
    return replace(PLAIN, tenants={"shop": TenantRules(cloud_budget=Budget(budget))})


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
        await until(lambda: _has_running(s, "local"))
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


# Hedges

HEDGING = replace(PLAIN, hedge=HedgeRules(enabled=True, share=1.0, after=1.0, soonest=0.01))


async def late(s, at):
    """Both backends have the request: the one that was asked first, then its hedge."""
    first = next(u.backend.id for u in s.pool.uplinks() if u.backend.in_flight)
    (second,) = at.keys() - {first}
    return at[first], at[second]


async def test_a_late_first_token_is_asked_for_elsewhere_and_the_loser_is_cancelled():
    async with pool_of(HEDGING, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        lost, _ = await first.next_start()
        won, _ = await second.next_start()
        await second.send(text_chunk(won, 0, "x", 1))
        await answer.has_chunks(1)
        await until(lambda: _cancelled(first, lost))
        # What the loser still says is heard by nobody, and its slot comes free.
        await first.send(text_chunk(lost, 0, "z", 9, finish_reason=pb.FINISH_REASON_CANCELLED))
        await second.send(text_chunk(won, 1, "y", 2, finish_reason=STOP))
        receipt = (await answer.last()).receipt
        assert receipt.hedged
        assert receipt.backend_id == second.id
        assert [(a.backend_id, a.error_reason, a.hedge) for a in receipt.attempts] == [
            (first.id, "CANCELLED", False),
            (second.id, "", True),
        ]
        assert "".join(chunk.text for chunk in answer.chunks) == "xy"
        await until(lambda: _idle(s))


async def test_the_first_one_may_still_win():
    async with pool_of(HEDGING, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        won, _ = await first.next_start()
        lost, _ = await second.next_start()
        await first.send(text_chunk(won, 0, "x", 1, finish_reason=STOP))
        receipt = (await answer.last()).receipt
        assert receipt.backend_id == first.id
        assert receipt.hedged
        await until(lambda: _cancelled(second, lost))
        await second.send(text_chunk(lost, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        await until(lambda: _idle(s))
        assert len(answer.ends) == 1


async def test_when_one_of_two_fails_the_other_one_answers():
    for failing in (0, 1):
        async with pool_of(HEDGING, a={}, b={}) as (s, at):
            answer = s.ask()
            both = await late(s, at)
            numbers = [(await backend.next_start())[0] for backend in both]
            await both[failing].crash()
            other = 1 - failing
            await both[other].send(text_chunk(numbers[other], 0, "x", 1, finish_reason=STOP))
            receipt = (await answer.last()).receipt
            assert receipt.backend_id == both[other].id
            assert len(receipt.attempts) == 2


async def test_a_caller_who_leaves_takes_both_along():
    async with pool_of(HEDGING, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        one, _ = await first.next_start()
        two, _ = await second.next_start()
        (exchange,) = s.handler._exchanges
        exchange.cancel()
        await until(lambda: _cancelled(first, one))
        await until(lambda: _cancelled(second, two))
        await first.send(text_chunk(one, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        assert (await answer.last()).finish_reason == pb.FINISH_REASON_CANCELLED
        await second.send(text_chunk(two, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        await until(lambda: _idle(s))


async def test_what_may_not_be_hedged_is_not():
    policy = replace(HEDGING, hedge=replace(HEDGING.hedge, share=0.0))
    async with pool_of(policy, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        number, _ = await first.next_start()
        await asyncio.sleep(0.1)  # several times as long as a hedge would wait
        await first.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        assert not (await answer.last()).receipt.hedged
        assert not second.masks


async def _cancelled(backend, number: int) -> bool:
    return number in backend.cancelled


async def _idle(s) -> bool:
    return not any(uplink.backend.in_flight for uplink in s.pool.uplinks())


# Repeats


async def test_answers_are_asked_for_again_only_within_the_budget():
    policy = replace(PLAIN, retry=RetryRules(ratio=0.0, per_second=0.1, attempts=4))
    async with pool_of(policy, a={}, b={}) as (s, at):
        down = Fault(errors_pb2.ERROR_REASON_INTERNAL, "down", work=Work.MAYBE_BILLED)
        for _ in range(3):
            answer = s.ask()
            first, second = await late(s, at)
            await first.refuse(down)
            refusing = asyncio.create_task(second.refuse(down))
            assert (await answer.fault()).reason == errors_pb2.ERROR_REASON_INTERNAL
            refusing.cancel()
        assert sum(len(backend.masks) for backend in at.values()) == 3 + 1


async def test_a_lost_backend_is_replaced_whatever_the_budget():
    policy = replace(PLAIN, retry=RetryRules(ratio=0.0, per_second=0.0, attempts=4))
    async with pool_of(policy, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        await first.next_start()
        await first.crash()
        await answered(second)
        assert (await answer.last()).receipt.backend_id == second.id


async def test_the_first_policy_holds_from_the_first_request_on():
    policy = replace(
        PLAIN,
        breaker=BreakerRules(consecutive=1, rest=30.0),
        affinity=Affinity(blocks_per_backend=7),
    )
    async with pool_of(policy, a={}) as (s, at):
        answer = s.ask()
        await at["a"].refuse(Fault(errors_pb2.ERROR_REASON_INTERNAL, "down"))
        await answer.fault()
        assert s.pool.uplink("a").backend.breaker.open_until > 0
        assert s.pool.prefixes.capacity == 7


# Prefixes


async def test_a_prompt_goes_where_its_beginning_is_cached():
    async with pool_of(PLAIN, a={}, b={}) as (s, at):
        prompt = "what all of them begin with " * 100
        s.ask(prompt=prompt + "first")
        first, _ = await late(s, at)
        await answered(first)
        for turn in range(4):
            await at_rest(s, first)
            s.ask(prompt=prompt + str(turn))
            await answered(first)


async def test_a_backend_that_says_what_it_holds_is_believed():
    async with pool_of(PLAIN, a={}, b={}) as (s, at):
        prompt = "what all of them begin with " * 100
        s.ask(prompt=prompt)
        first, second = await late(s, at)
        await answered(first)
        await at_rest(s, first)
        names = list(s.pool.prefixes._held[first.id])
        await first.says(prefix_cache=session_pb2.PrefixCacheEvents(removed=names))
        await second.says(prefix_cache=session_pb2.PrefixCacheEvents(stored=reversed(names)))
        await until(lambda: _holds(s, second, len(names)))
        await until(lambda: _holds(s, first, 0))
        s.ask(prompt=prompt)
        await answered(second)
        await second.says(prefix_cache=session_pb2.PrefixCacheEvents(cleared=True))
        await until(lambda: _holds(s, second, 0))


async def at_rest(s, backend) -> None:
    """The backend says that it has done all that it was sent."""
    await backend.send(load=session_pb2.LoadReport(starts_seen=100))

    async def so() -> bool:
        return not s.pool.uplink(backend.id).backend.tracker.view().sent_tokens_since

    await until(so)


async def _holds(s, backend, count: int) -> bool:
    return s.pool.prefixes.count(backend.id) == count


async def test_what_a_lost_backend_held_is_forgotten():
    async with pool_of(PLAIN, a={}, b={}) as (s, at):
        s.ask(prompt="what all of them begin with " * 100)
        first, _ = await late(s, at)
        await answered(first)
        assert s.pool.prefixes.count(first.id)
        await first.crash()
        await until(lambda: _holds(s, first, 0))


# Waiting, and telling why


async def test_one_whose_time_ended_in_the_line_goes_nowhere_any_more():
    policy = replace(PLAIN, objective=Objective(ttft=30.0))
    async with pool_of(policy, local={}, cloud=CLOUD) as (s, at):
        await at["local"].send(load=BUSY)
        await until(lambda: _has_running(s, "local"))
        answer = s.ask(seconds=0.2)
        assert not answer.ends
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        assert fault.work is Work.NOT_DISPATCHED
        assert not at["cloud"].masks


async def test_the_urgent_go_first_and_nobody_loses_the_reserved_places():
    classes = {
        PriorityClass.SYSTEM: ClassRules(floor=0.0),
        PriorityClass.INTERACTIVE: ClassRules(floor=0.1),
        PriorityClass.BATCH: ClassRules(floor=0.0),
    }
    admission = AdmissionRules(classes=classes)
    async with pool_of(replace(PLAIN, admission=admission), a={}) as (s, at):
        await at["a"].send(load=BUSY)
        await until(lambda: _has_running(s, "a"))
        batch = [
            s.ask(prompt=f"b{n}", routing=pb.Routing(priority=pb.PRIORITY_BATCH)) for n in range(20)
        ]
        # The line has 20 places here, two of which are kept for interactive requests.
        refused = [answer for answer in batch if answer.ends]
        assert len(refused) == 2
        fault = await refused[0].fault()
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.retry_after
        interactive = s.ask(prompt="i")
        system = s.ask(prompt="s", routing=pb.Routing(priority=pb.PRIORITY_SYSTEM))
        assert not interactive.ends
        assert system.ends, "no place is kept for it here"
        await at["a"].send(load=FREE)
        _, request = await at["a"].next_start()
        assert request.prompt == "i"


async def test_an_explanation_says_all_that_the_decision_was_made_of():
    policy = replace(
        PLAIN,
        version="v7",
        objective=Objective(ttft=1.0, tpot=0.05),
        aliases={"chat": (Variant(MODEL, 1.0),)},
    )
    async with pool_of(policy, local={}, cloud=CLOUD) as (s, _):
        request = pb.GenerateRequest(model="chat", prompt="p" * 400)
        found = explain(s.routing, request, "shop")
        assert found.resolved_model == MODEL
        assert found.policy_version == "v7"
        assert found.algorithm == "predicted"
        assert found.ttft_objective.ToMilliseconds() == 1000
        assert found.tpot_objective.ToMilliseconds() == 50
        assert 100 <= found.prompt_tokens <= 110
        local, cloud = found.candidates
        assert (local.backend_id, local.expected_cost_microusd) == ("local", 0)
        assert cloud.expected_cost_microusd > 4096
        assert not s.pool.uplink("local").backend.in_flight


@pytest.mark.parametrize("tpot", [0.001, 1.0])
async def test_a_backend_too_slow_a_token_sends_the_excess_on(tpot):
    policy = replace(PLAIN, objective=Objective(ttft=1.0, tpot=tpot))
    async with pool_of(policy, local={}, cloud=CLOUD) as (s, at):
        answer = s.ask()
        chosen = "cloud" if tpot < 0.005 else "local"
        await answered(at[chosen])
        receipt = (await answer.last()).receipt
        assert receipt.backend_id == chosen
        expected = pb.OVERFLOW_REASON_SATURATED if chosen == "cloud" else 0
        assert receipt.overflow_reason == expected
