"""Requests with the same content under way: who is sent, who gets what, who leaves, who fails."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.router.core.policy import CacheRules, ModelRules, Policy, TenantRules
from tests.support.response_cache import POLICY, RECEIPT, scene

CANCELLED = pb.FINISH_REASON_CANCELLED
IN_FLIGHT = pb.CACHE_SOURCE_IN_FLIGHT
LOST = Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "it is gone")
BATCH = pb.Routing(priority=pb.PRIORITY_BATCH)


# Sharing


async def test_identical_requests_reach_the_backend_once_and_get_the_same_answer():
    async with scene() as s:
        first = s.ask()
        second = s.ask()
        s.last.say("one", " two")
        third = s.ask()
        assert third.text == "one two"
        s.last.say(" three")
        s.last.end()
        assert len(s.started) == 1
        for caller in (first, second, third):
            assert caller.answer.choices[0].text == "one two three"
            assert list(caller.answer.choices[0].token_ids) == [7, 7, 7]
            assert caller.answer.usage.completion_tokens == 3
            assert caller.tokens == 3
            assert caller.answer.request_id == caller.request_id
            assert [chunk.request_id for chunk in caller.chunks[1:]] == [""] * (
                len(caller.chunks) - 1
            )


async def test_only_the_first_one_pays_and_is_told_of_attempts():
    async with scene() as s:
        first, second = s.ask(model="river"), s.ask(model="water", stands_for="river")
        s.last.say("x")
        s.last.end()
        assert first.answer.receipt == RECEIPT
        shared = second.answer.receipt
        assert (shared.tier, shared.backend_id) == (pb.TIER_LOCAL, "engine-1")
        assert (shared.served_model, shared.resolved_model) == ("river-8b", "river")
        assert (shared.cache, shared.cost_microusd) == (IN_FLIGHT, 0)
        assert not shared.attempts
        assert shared.HasField("ttft")


async def test_each_hears_its_own_request_id_though_the_backend_says_the_first_ones():
    async with scene() as s:
        first, second = s.ask(), s.ask()
        s.last.say("x")
        # A backend that goes on with an answer says the id again, in the midst of it.
        again = pb.GenerateChunk(text="y", request_id=first.request_id).SerializeToString()
        s.last._outlet.chunk(again, last=False, tokens=1)
        s.last.end()
        assert {chunk.request_id for chunk in second.chunks} <= {"", second.request_id}
        assert second.text == "xy"


async def test_tenants_never_share():
    async with scene() as s:
        s.ask(tenant="shop")
        s.ask(tenant="bank")
        assert len(s.started) == 2


async def test_a_private_request_does_not_share_with_one_that_may_leave():
    async with scene() as s:
        s.ask()
        s.ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
        assert len(s.started) == 2


async def test_an_answer_too_long_to_be_kept_is_passed_on_and_nobody_joins_it_late():
    async with scene() as s:
        s.policy = Policy(tenants=POLICY.tenants, cache=CacheRules(max_answer_bytes=100))
        first, early = s.ask(), s.ask()
        s.last.say("a" * 60)
        s.last.say("b" * 60)
        late = s.ask()
        assert len(s.started) == 2
        s.started[0].end()
        s.started[1].say("c")
        s.started[1].end()
        assert first.text == early.text == "a" * 60 + "b" * 60
        assert late.text == "c"


async def test_many_small_chunks_of_a_short_answer_are_kept_all_the_same():
    async with scene() as s:
        s.policy = Policy(tenants=POLICY.tenants, cache=CacheRules(max_answer_bytes=400))
        s.ask()
        s.last.say(*"abcdefghij" * 10)
        s.last.end()
        assert s.ask().text == "abcdefghij" * 10
        assert len(s.started) == 1


async def test_chunks_that_cannot_be_joined_are_passed_on_and_not_kept():
    async with scene() as s:
        first = s.ask()
        outlet = s.last._outlet
        received: list[bytes] = []
        first.chunk = lambda raw, *, last, tokens: received.append(raw)
        for _ in range(100):
            outlet.chunk(b"\xff\xff", last=False, tokens=1)
        s.ask()
        assert len(s.started) == 2
        s.started[0].end()
        assert received[:100] == [b"\xff\xff"] * 100
        assert s.cache.stored == 0


# Haste


async def test_an_urgent_request_does_not_wait_in_the_line_of_a_patient_one():
    async with scene() as s:
        s.ask(routing=BATCH)
        s.ask()
        assert len(s.started) == 2
        # Whoever comes now joins the more urgent one of the two.
        s.ask(routing=BATCH)
        s.ask()
        assert len(s.started) == 2


async def test_a_limit_of_its_own_is_not_left_to_a_request_without_one():
    async with scene() as s:
        s.ask()
        hurried = pb.Routing()
        hurried.ttft_slo.FromMilliseconds(100)
        s.ask(routing=hurried)
        assert len(s.started) == 2


async def test_once_there_is_output_nobody_is_too_urgent_to_share_it():
    async with scene() as s:
        s.ask(routing=BATCH)
        s.last.say("x")
        assert s.ask().text == "x"
        assert len(s.started) == 1


# Leaving


async def test_when_the_first_one_leaves_the_request_goes_on_for_the_others():
    async with scene() as s:
        first, second, third = s.ask(), s.ask(), s.ask()
        s.last.say("x")
        first.cancel()
        assert not s.last.cancelled
        assert first.answer.choices[0].finish_reason == CANCELLED
        assert first.answer.usage.completion_tokens == 1
        s.last.say("y")
        s.last.end()
        assert second.text == third.text == "xy"
        # Somebody has to be told what it cost: the next one.
        receipt = second.answer.receipt
        assert receipt.HasField("ttft")
        receipt.ClearField("ttft")
        assert receipt == RECEIPT
        assert third.answer.receipt.cache == IN_FLIGHT


async def test_when_all_have_left_the_request_is_cancelled():
    async with scene() as s:
        first, second = s.ask(), s.ask()
        second.cancel()
        assert not s.last.cancelled
        assert second.answer.receipt.cache == IN_FLIGHT
        first.cancel()
        first.cancel()
        assert s.last.cancelled
        # Its own word, with what was used, is the backend's.
        assert first.answer.receipt == RECEIPT
        s.ask()
        assert len(s.started) == 2


async def test_nobody_joins_a_request_that_is_being_cancelled():
    async with scene() as s:
        first = s.ask()
        s.last.cancelled = True  # the backend takes its time
        first.cancel()
        s.ask()
        assert len(s.started) == 2


async def test_whoever_leaves_before_any_output_hears_its_request_id():
    async with scene() as s:
        s.ask()
        second = s.ask(continuation=pb.Continuation(token_ids=[1, 2]))
        third = s.ask(continuation=pb.Continuation(token_ids=[1, 2]))
        third.cancel()
        assert third.answer.request_id == third.request_id
        assert third.chunks[-1].first_token == 2
        assert not second.ends


async def test_an_operator_cancels_one_request_and_not_its_neighbours():
    async with scene() as s:
        first, second = s.ask(request_id="mine"), s.ask(request_id="theirs")
        assert s.cache.cancel_request("mine")
        assert not s.cache.cancel_request("mine")
        assert first.answer.choices[0].finish_reason == CANCELLED
        assert not second.ends
        assert not s.cache.cancel_request("nobody's")


async def test_the_request_has_more_time_than_the_caller_that_happened_to_be_first():
    async with scene() as s:
        s.ask(timeout=1.0)
        assert s.last.context.deadline > asyncio.get_running_loop().time() + 600
        s.ask(timeout=600.0)
        assert len(s.started) == 1


# Failing


async def test_a_failure_after_output_is_everybodys():
    async with scene() as s:
        first, second = s.ask(), s.ask()
        s.last.say("x")
        s.last.fail(LOST)
        assert first.fault is LOST
        assert second.fault is LOST
        assert len(s.started) == 1


async def test_a_failure_before_output_is_the_first_ones_and_the_others_share_another_try():
    async with scene() as s:
        first, second, third = s.ask(), s.ask(), s.ask()
        s.last.fail(LOST)
        assert first.fault is LOST
        assert len(s.started) == 2
        s.last.say("x")
        s.last.end()
        assert second.answer.receipt == RECEIPT
        assert third.answer.receipt.cache == IN_FLIGHT
        assert s.last.context.request_id == second.request_id


async def test_what_fails_twice_fails_for_all_who_waited():
    async with scene() as s:
        callers = [s.ask() for _ in range(5)]
        s.last.fail(LOST)
        s.last.fail(LOST)
        assert [caller.fault for caller in callers] == [LOST] * 5
        assert len(s.started) == 2


async def test_a_refusal_of_the_second_try_reaches_those_who_waited():
    async with scene() as s:
        first, second, third = s.ask(), s.ask(), s.ask()
        s.refuse = Fault(errors_pb2.ERROR_REASON_NO_BACKEND, "none is left")
        s.last.fail(LOST)
        assert first.fault is LOST
        assert second.fault is third.fault is s.refuse


async def test_a_refused_request_leaves_nothing_behind():
    async with scene() as s:
        s.refuse = LOST
        assert s.ask().fault is LOST
        s.refuse = None
        s.ask()
        assert len(s.started) == 1


async def test_whoever_was_moved_to_another_try_can_still_leave():
    async with scene() as s:
        _, second = s.ask(), s.ask()
        s.last.fail(LOST)
        second.cancel()
        assert s.last.cancelled


# Keeping


async def test_what_was_answered_is_answered_from_memory():
    async with scene() as s:
        s.ask()
        s.last.say("one", " two")
        s.last.end()
        hit = s.ask(model="water", stands_for="river")
        assert len(s.started) == 1
        assert hit.text == "one two"
        assert hit.answer.request_id == hit.request_id
        receipt = hit.answer.receipt
        assert (receipt.cache, receipt.cost_microusd) == (pb.CACHE_SOURCE_MEMORY, 0)
        assert (receipt.backend_id, receipt.resolved_model) == ("engine-1", "river")
        assert hit.tokens == 2
        assert (s.cache.stored, s.cache.misses) == (1, 1)
        assert s.cache.hits == {pb.CACHE_SOURCE_MEMORY: 1, IN_FLIGHT: 0}


@pytest.mark.parametrize(
    "reason",
    [pb.FINISH_REASON_CANCELLED, pb.FINISH_REASON_ERROR, pb.FINISH_REASON_CONTENT_FILTER],
)
async def test_what_did_not_come_to_its_own_end_is_asked_again(reason):
    async with scene() as s:
        s.ask()
        s.last.say("x")
        s.last.end(reason)
        s.ask()
        assert len(s.started) == 2


async def test_what_is_older_than_the_policy_allows_is_asked_again():
    async with scene() as s:
        s.ask()
        s.last.end()
        s.now += 3599
        assert s.ask().answer.receipt.cache == pb.CACHE_SOURCE_MEMORY
        s.policy = Policy(tenants=POLICY.tenants, cache=CacheRules(ttl=60))
        s.ask()
        assert len(s.started) == 2


async def test_a_changed_policy_of_models_or_masking_asks_again():
    async with scene() as s:
        s.ask()
        s.last.end()
        s.policy = Policy(tenants=POLICY.tenants, mask=frozenset({"email"}))
        s.ask()
        assert len(s.started) == 2


async def test_what_a_relay_wants_masked_is_another_question():
    async with scene() as s:
        s.ask()
        s.last.end()
        s.ask(mask=frozenset({pb.PII_KIND_EMAIL}))
        assert len(s.started) == 2


async def test_only_tenants_and_models_that_allow_it_are_kept():
    async with scene() as s:
        greedy = pb.GenerateRequest(sampling=pb.Sampling(temperature=0))
        s.policy = Policy()
        assert not s.cache.serves("shop")
        tenants = {"shop": TenantRules(cache=True), "*": TenantRules()}
        models = {"sea": ModelRules(cache=False), "river": ModelRules()}
        s.policy = Policy(tenants=tenants, models=models)
        assert s.cache.serves("shop")
        assert not s.cache.serves("other")
        assert s.cache.takes(greedy, "river")
        assert s.cache.takes(greedy, "unlisted")
        assert not s.cache.takes(greedy, "sea")
        assert not s.cache.takes(pb.GenerateRequest(), "river")
        s.policy = Policy(tenants=tenants, cache=CacheRules(enabled=False))
        assert not s.cache.serves("shop")


# All of it


actions = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([pb.PRIORITY_BATCH, pb.PRIORITY_INTERACTIVE])),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("say"), st.integers(0, 3)),
    st.tuples(st.just("end"), st.integers(0, 3)),
    st.tuples(st.just("fail"), st.integers(0, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(actions, max_size=30))
def test_whatever_happens_every_caller_is_ended_once_with_a_whole_answer_or_told(steps):
    async def run() -> None:
        async with scene() as s:
            callers = []
            alive: list = []

            def still() -> list:
                return [a for a in s.started if a in alive]

            for action, value in steps:
                if action == "ask":
                    before = len(s.started)
                    callers.append(s.ask(routing=pb.Routing(priority=value)))
                    alive += s.started[before:]
                elif action == "cancel" and callers:
                    callers[value % len(callers)].cancel()
                elif still():
                    target = still()[value % len(still())]
                    if target.cancelled:
                        alive.remove(target)
                    elif action == "say":
                        target.say(chr(256 + target._position))
                    elif action in ("end", "fail"):
                        alive.remove(target)
                        before = len(s.started)
                        target.end() if action == "end" else target.fail(LOST)
                        alive += s.started[before:]
            while still():
                before = len(s.started)
                target = alive.pop()
                if not target.cancelled:
                    target.end()
                alive += s.started[before:]
            for caller in callers:
                (end,) = caller.ends
                positions = [ord(c) - 256 for c in caller.text]
                assert positions == list(range(len(positions)))
                if isinstance(end, pb.GenerateChunk):
                    assert (
                        end.receipt.HasField("ttft")
                        or end.finish_reason == CANCELLED
                        or (end.receipt == RECEIPT)
                    )
                    assert caller.chunks[0].request_id == caller.request_id
                    assert caller.tokens == len(positions)
                    if end.finish_reason == pb.FINISH_REASON_STOP:
                        assert end.usage.completion_tokens == len(positions)
            assert not s.cache._flights
            assert not s.cache._running

    asyncio.run(run())
