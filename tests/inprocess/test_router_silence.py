"""Which backends are given up because they bring no token: who fell silent, and nobody else."""

import asyncio
from dataclasses import replace

from anabranch.v1 import session_pb2
from services.router.core.policy import BreakerRules
from tests.support.auth import until
from tests.support.policy_scene import CLOUD, ONLY_CLOUD, PLAIN, STOP, late, pool_of
from tests.support.scripted_backends import text_chunk


async def test_a_backend_that_falls_silent_while_it_decodes_is_given_up_and_its_work_goes_on():
    policy = replace(PLAIN, breaker=BreakerRules(silence=0.2, rest=30.0))
    async with pool_of(policy, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        number, _ = await first.next_start()
        await first.send(text_chunk(number, 0, "x", 1))
        await answer.has_chunks(1)
        looking = asyncio.create_task(s.pool.look_for_silence())
        try:
            number, request = await second.next_start()
        finally:
            looking.cancel()
        assert list(request.continuation.token_ids) == [1]
        await second.send(text_chunk(number, 1, "y", 2, finish_reason=STOP))
        assert (await answer.last()).receipt.resumed_at_tokens == [1]

        async def rests() -> bool:
            found = s.pool.uplink(first.id)
            return found is not None and found.backend.breaker.open_until > 0

        await until(rests)


async def test_a_long_prompt_is_no_silence():
    policy = replace(PLAIN, breaker=BreakerRules(silence=0.05, rest=30.0))
    async with pool_of(policy, a={}) as (s, at):
        answer = s.ask()
        number, _ = await at["a"].next_start()
        looks = [s.pool.uplink("a").end_if_silent() for _ in range(2)]
        await asyncio.sleep(0.2)  # four times the silence that a decoding backend is allowed
        looks.append(s.pool.uplink("a").end_if_silent())
        await at["a"].send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        assert (await answer.last()).receipt.backend_id == "a"


async def test_a_step_that_long_prompts_make_long_is_no_silence_for_those_that_decode():
    policy = replace(PLAIN, breaker=BreakerRules(silence=0.05, rest=30.0))
    # As on a slow processor: a prompt token takes a millisecond, and many of them wait.
    slow = session_pb2.LoadReport(
        running=1,
        max_running=4,
        queued_prefill_tokens=2000,
        step_time={"nanos": 10_000_000},
        step_model=session_pb2.StepCoefficients(base=10_000, prefill=1000),
    )
    async with pool_of(policy, a={}) as (s, at):
        answer = s.ask()
        number, _ = await at["a"].next_start()
        await at["a"].send(text_chunk(number, 0, "x", 1), load=slow)
        await answer.has_chunks(1)
        assert not await _ejected(s, "a")
        await at["a"].send(text_chunk(number, 1, "y", 2, finish_reason=STOP))
        assert (await answer.last()).receipt.backend_id == "a"


async def test_a_backend_whose_steps_go_on_is_not_silent_however_long_its_prompt():
    policy = replace(PLAIN, breaker=BreakerRules(silence=0.05, rest=30.0))
    async with pool_of(policy, a={}) as (s, at):
        s.ask()
        await at["a"].next_start()
        breaker = s.pool.uplink("a").backend.breaker
        for step in range(1, 5):
            # Said to be fast, so that the prompt should have been read long ago.
            report = session_pb2.LoadReport(running=1, step_time={"nanos": step}, starts_seen=1)
            await at["a"].send(load=report)

            async def taken(nanos=step) -> bool:
                return s.pool.uplink("a").backend.report.step_time.nanos == nanos

            await until(taken)
            before = breaker._quiet_since
            assert before >= s.pool.uplink("a").backend.report_at
        assert await _ejected(s, "a"), "once no step ends any more"


async def _ejected(s, name: str) -> bool:
    """Whether it is given up in four times the silence that those tests allow."""
    uplink = s.pool.uplink(name)
    uplink.end_if_silent()
    await asyncio.sleep(0.2)
    uplink.end_if_silent()
    return uplink.backend.breaker.open_until > 0


async def test_a_provider_that_pauses_takes_no_other_request_along():
    policy = replace(PLAIN, breaker=BreakerRules(silence=0.05, rest=30.0))
    async with pool_of(policy, cloud=CLOUD) as (s, at):
        answer = s.ask(routing=ONLY_CLOUD)
        number, _ = await at["cloud"].next_start()
        await at["cloud"].send(text_chunk(number, 0, "x", 1))
        await answer.has_chunks(1)
        assert not await _ejected(s, "cloud")
        await at["cloud"].send(text_chunk(number, 1, "y", 2, finish_reason=STOP))
        assert (await answer.last()).receipt.backend_id == "cloud"
