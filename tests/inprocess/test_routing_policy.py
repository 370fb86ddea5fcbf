"""What the policy makes of requests: names, masks, repeats, prefixes.

The router's own parts in front of scripted backends; the decision itself is tested in tests/unit.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from services.router.core.policy import (
    AdmissionRules,
    Affinity,
    BreakerRules,
    ClassRules,
    ModelRules,
    Objective,
    PriorityClass,
    RetryRules,
    TenantRules,
    Variant,
)
from services.router.explanation import explain
from tests.support.auth import until
from tests.support.policy_scene import (
    BUSY,
    CLOUD,
    FREE,
    ONLY_CLOUD,
    PLAIN,
    answered,
    has_running,
    late,
    pool_of,
)
from tests.support.scripted_backends import MODEL, text_chunk

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
        await until(lambda: has_running(s, "local"))
        answer = s.ask()
        await at["local"].send(load=FREE)
        await answered(at["local"])
        assert (await answer.last()).receipt.tier == pb.TIER_LOCAL
        assert not at["cloud"].masks


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
        await until(lambda: has_running(s, "local"))
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
        await until(lambda: has_running(s, "a"))
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
