"""What goes wrong in one request of the router ends that one: sessions, lines and others go on."""

import time
from dataclasses import replace

import grpc
import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, to_status
from services.router import exchange
from services.router.core.policy import BreakerRules, ModelRules
from tests.support.auth import until
from tests.support.policy_scene import (
    BUSY,
    FREE,
    HEDGING,
    PLAIN,
    STOP,
    cancelled,
    has_running,
    idle,
    late,
    pool_of,
)
from tests.support.scripted_backends import Answer, Frame, scene, text_chunk


class Broken(Answer):
    """An outlet with a bug in it, for as long as it says so."""

    def __init__(self, *, chunks: bool = False, failures: bool = False) -> None:
        super().__init__()
        self._chunks = chunks
        self._failures = failures

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self._chunks:
            self._chunks = False
            raise RuntimeError("a bug")
        super().chunk(raw, last=last, tokens=tokens)

    def fail(self, fault: Fault) -> None:
        if self._failures:
            self._failures = False
            raise RuntimeError("a bug")
        super().fail(fault)


@pytest.mark.parametrize("last", [False, True])
async def test_a_bug_met_with_an_answer_ends_that_one_and_no_other_of_its_session(last):
    async with pool_of(PLAIN, a={}) as (s, at):
        broken, other = s.ask(Broken(chunks=True)), s.ask()
        one, _ = await at["a"].next_start()
        two, _ = await at["a"].next_start()
        ends = {"finish_reason": STOP} if last else {}
        await at["a"].send(text_chunk(one, 0, "x", 1, **ends), text_chunk(two, 0, "y", 1))
        assert (await broken.fault()).reason == errors_pb2.ERROR_REASON_INTERNAL
        if not last:
            await until(lambda: cancelled(at["a"], one))
            await at["a"].send(text_chunk(one, 1, "", finish_reason=STOP))
        await at["a"].send(text_chunk(two, 1, "z", 2, finish_reason=STOP))
        assert (await other.last()).receipt.backend_id == "a"
        await until(lambda: idle(s))
        assert at["a"].sessions == 1
        assert not s.handler._exchanges


async def test_a_bug_met_with_a_loss_keeps_no_other_request_from_going_on():
    async with pool_of(PLAIN, a={}) as (s, at):
        broken, other = s.ask(Broken(failures=True)), s.ask()
        await at["a"].next_start()
        await at["a"].next_start()
        await at["a"].crash()
        for answer in (broken, other):
            assert await answer.fault()
        assert not s.handler._exchanges


async def test_a_bug_met_in_the_line_ends_that_one_and_the_next_has_its_turn(monkeypatch):
    send = exchange.send

    def buggy(routing, asking, request, *others):
        if request.prompt == "bad":
            raise RuntimeError("a bug")
        return send(routing, asking, request, *others)

    monkeypatch.setattr(exchange, "send", buggy)
    async with pool_of(PLAIN, a={}) as (s, at):
        await at["a"].send(load=BUSY)
        await until(lambda: has_running(s, "a"))
        bad, good = s.ask(prompt="bad"), s.ask(prompt="good")
        assert len(s.routing.line) == 2
        await at["a"].send(load=FREE)
        number, request = await at["a"].next_start()
        assert request.prompt == "good"
        assert (await bad.fault()).reason == errors_pb2.ERROR_REASON_INTERNAL
        await at["a"].send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        await good.last()
        assert at["a"].sessions == 1
        assert not len(s.routing.line)


async def test_one_that_leaves_while_others_are_shed_keeps_nobody_from_being_told():
    class Leaving(Answer):
        """With its own end it gives the next one up."""

        def fail(self, fault: Fault) -> None:
            super().fail(fault)
            next(e for e in s.handler._exchanges).cancel()

    async with scene(max_queue_time=0.1) as s:
        a = await s.backend("a")
        s.list(a)
        await s.ready(a)
        await a.send(load=BUSY)
        await until(lambda: has_running(s, "a"))
        answers = [s.ask(Leaving()), s.ask(), s.ask()]
        time.sleep(0.15)  # noqa: ASYNC251 - so that the loop finds all of them due at once
        ends = [await answer._end() for answer in answers]
        assert sum(isinstance(end, Fault) for end in ends) == 2
        assert not len(s.routing.line)
        assert s.routing.line._timer is None


async def test_nothing_ticks_for_a_line_that_everybody_has_left():
    async with pool_of(PLAIN, a={}) as (s, at):
        await at["a"].send(load=BUSY)
        await until(lambda: has_running(s, "a"))
        answer = s.ask()
        assert s.routing.line._timer is not None
        (waiting,) = s.handler._exchanges
        waiting.cancel()
        assert (await answer.last()).finish_reason == pb.FINISH_REASON_CANCELLED
        assert s.routing.line._timer is None


async def test_an_error_ends_a_request_whether_or_not_it_says_that_it_is_the_last_word():
    async with pool_of(PLAIN, a={}) as (s, at):
        answer = s.ask()
        number, _ = await at["a"].next_start()
        refusal = to_status(Fault(errors_pb2.ERROR_REASON_INVALID_REQUEST, "no"))
        await at["a"].send(Frame(stream=number, error=refusal.SerializeToString()))
        assert (await answer.fault()).reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
        await until(lambda: idle(s))


async def test_what_was_lost_before_it_left_is_said_not_to_have_begun():
    async with pool_of(PLAIN, a={}) as (s, at):
        # Its session is over, and nobody has had a turn yet to hear of it.
        s.pool.uplink("a")._call.cancel()
        fault = await s.ask().fault()
        assert fault.reason == errors_pb2.ERROR_REASON_NO_BACKEND
        assert fault.work is Work.NOT_DISPATCHED
        assert not at["a"].masks


async def test_a_hedge_that_failed_counts_when_it_is_said_how_far_a_request_got():
    async with pool_of(HEDGING, a={}, b={}) as (s, at):
        answer = s.ask()
        first, second = await late(s, at)
        down = Fault(errors_pb2.ERROR_REASON_INTERNAL, "down", work=Work.MAYBE_BILLED)
        await second.refuse(down)
        await until(lambda: _has_failed(s))
        await first.refuse(Fault(errors_pb2.ERROR_REASON_OVERLOADED, "full"))
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.work is Work.MAYBE_BILLED
        assert len(second.masks) == 1, "who failed it is not asked again"


async def _has_failed(s) -> bool:
    (running,) = s.handler._exchanges
    return running._receipt.attempts == 2


async def test_nobody_who_waits_is_sent_to_a_session_that_is_just_over():
    policy = replace(PLAIN, breaker=BreakerRules(consecutive=1, rest=0.0, longest_rest=30.0))
    async with pool_of(policy, a={}, b={}) as (s, at):
        a = s.pool.uplink("a")
        await at["b"].send(load=BUSY)
        await until(lambda: has_running(s, "b"))
        s.ask(prompt="fails")
        await at["a"].refuse(Fault(errors_pb2.ERROR_REASON_INTERNAL, "down"))
        await until(lambda: _waits(s, 1))
        s.ask(prompt="the probe")
        await at["a"].next_start()
        s.ask(prompt="waits")
        assert len(s.routing.line) == 2
        # This ending says nothing about the probe: another one may be it.
        a._call.fail(grpc.StatusCode.UNAUTHENTICATED, "as the test wants it")
        _, request = await at["a"].next_start()
        assert request.prompt == "waits"
        assert a.backend.in_flight == len(a.requests) == 1


async def _waits(s, count: int) -> bool:
    return len(s.routing.line) == count


async def test_a_hedge_goes_by_the_names_that_its_request_was_sent_under():
    policies = [replace(HEDGING, models={"river": ModelRules(local="small")})]
    async with scene(in_force=lambda: policies[-1]) as s:
        a = await s.backend("a", models=["small"])
        b = await s.backend("b", models=["other"])
        s.list(a, b)
        await s.ready(a, b)
        first = s.ask(prompt="first", model="river")
        policies.append(replace(HEDGING, models={"river": ModelRules(local="other")}))
        s.ask(prompt="second", model="river")
        hedged = next(e for e in s.handler._exchanges if e._request.prompt == "first")._hedge
        await until(lambda: _was_due(hedged))
        assert [(await b.next_start())[1].prompt] == ["second"]
        number, _ = await a.next_start()
        await a.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        assert not (await first.last()).receipt.hedged
        assert len(b.masks) == 1


async def _was_due(hedge) -> bool:
    return hedge._timer is None
