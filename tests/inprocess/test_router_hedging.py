"""A late first token is asked for elsewhere: who answers first wins, the other is cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from anabranch.v1 import generation_pb2 as pb
from tests.support.auth import until
from tests.support.policy_scene import (
    HEDGING,
    STOP,
    cancelled,
    idle,
    late,
    pool_of,
)
from tests.support.scripted_backends import text_chunk


async def test_a_late_first_token_is_asked_for_elsewhere_and_the_loser_iscancelled():
    async with pool_of(HEDGING, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        lost, _ = await first.next_start()
        won, _ = await second.next_start()
        await second.send(text_chunk(won, 0, "x", 1))
        await answer.has_chunks(1)
        await until(lambda: cancelled(first, lost))
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
        await until(lambda: idle(s))


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
        await until(lambda: cancelled(second, lost))
        await second.send(text_chunk(lost, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        await until(lambda: idle(s))
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
        await until(lambda: cancelled(first, one))
        await until(lambda: cancelled(second, two))
        await first.send(text_chunk(one, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        assert (await answer.last()).finish_reason == pb.FINISH_REASON_CANCELLED
        await second.send(text_chunk(two, 0, "", finish_reason=pb.FINISH_REASON_CANCELLED))
        await until(lambda: idle(s))


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
