"""However a request with quotas ends, its reservation ends once, with what it used."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from services.chassis.model_handler import CallContext, Outlet
from services.chassis.model_streams import ActiveRequest, ActiveRequests, StreamLimits, onward
from services.chassis.principal import Principal
from services.chassis.quotas.gate import Decided, QuotaGate
from services.chassis.quotas.metered import estimated_input, metered_reply
from services.chassis.quotas.reservations import Reservation
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from tests.support.waiting import BOUND_S

DAY = 86_400
PROMPT = "p" * 40  # ten tokens
RULES = (
    QuotaRule(Subject.TENANT, Unit.TOKENS, 1000, DAY, 1000),
    QuotaRule(Subject.CLIENT, Unit.REQUESTS, 10, DAY, 10),
)
USED_UP = Fault(errors_pb2.ERROR_REASON_QUOTA_EXCEEDED, "used up", retry_after=1.0)


def principal(quotas: tuple[QuotaRule, ...] = RULES, *scopes: str) -> Principal:
    scopes_held = frozenset(scopes or ["generate"])
    return Principal("web", "shop", scopes_held, 2e9, "t", ("*",), quotas=quotas)


class Gate(QuotaGate):
    """Decides when the test says so, and notes how reservations ended."""

    def __init__(self, *, at_once: bool = True) -> None:
        super().__init__()
        self.at_once = at_once
        self.asked: list[tuple[int, Decided]] = []
        self.ended: list[int | None] = []

    def ask(self, principal: Principal, model: str, tokens: int, decided: Decided) -> None:
        self.asked.append((tokens, decided))
        if self.at_once:
            decided(Reservation((), 1, shared=False))

    def decide(self, outcome: Reservation | Fault | None = None) -> None:
        _, decided = self.asked.pop()
        decided(outcome or Reservation((), 1, shared=False))

    def settle(self, reservation: Reservation, tokens: int) -> None:
        self.ended.append(tokens)

    def release(self, reservation: Reservation) -> None:
        self.ended.append(None)


class Handler:
    """Keeps the outlet of its request, and whether that was cancelled."""

    def __init__(self, refuses: Fault | None = None) -> None:
        self.outlets: list[Outlet] = []
        self.cancelled = 0
        self._refuses = refuses

    def open(self, request: Any, context: CallContext, outlet: Outlet) -> Callable[[], None]:
        if self._refuses is not None:
            raise self._refuses
        self.outlets.append(outlet)
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


class Target:
    """What came out."""

    def __init__(self) -> None:
        self.chunks: list[pb.GenerateChunk] = []
        self.faults: list[Fault] = []

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self.chunks.append(pb.GenerateChunk.FromString(raw))

    def fail(self, fault: Fault) -> None:
        self.faults.append(fault)


class Scene:
    """One request at its door."""

    def __init__(self, gate: Gate, *, refuses: Fault | None = None, **asked: Any) -> None:
        self.gate = gate
        self.handler = Handler(refuses)
        self.target = Target()
        handler: Any = self.handler
        self.requests = ActiveRequests(handler, StreamLimits(), quotas=gate)
        self.requests.loading = False
        fields = {"model": "river", "prompt": PROMPT, "request_id": "r"} | asked
        raw = pb.GenerateRequest(**fields).SerializeToString()
        self.request: ActiveRequest = self.requests.open(raw, self.target, principal())

    @property
    def outlet(self) -> Outlet:
        (outlet,) = self.handler.outlets
        return outlet


def text(tokens: int = 1) -> bytes:
    return pb.GenerateChunk(text="x", token_ids=[1] * tokens).SerializeToString()


def ending(**usage: Any) -> bytes:
    return pb.GenerateChunk(
        finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(**usage) if usage else None
    ).SerializeToString()


STATED = {"prompt_tokens": 7, "completion_tokens": 5, "source": pb.Usage.SOURCE_PROVIDER}


async def test_the_usage_of_the_last_chunk_decides():
    s = Scene(Gate())
    s.outlet.chunk(text(3), last=False, tokens=3)
    s.outlet.chunk(ending(**STATED), last=True, tokens=0)
    assert s.gate.ended == [12]
    assert len(s.target.chunks) == 2


async def test_without_usage_what_was_seen_counts_also_past_the_shortcut():
    s = Scene(Gate())
    s.outlet.chunk(text(3), last=False, tokens=3)
    onward(s.outlet)(text(4), last=False, tokens=4)
    s.outlet.chunk(ending(), last=True, tokens=1)
    assert s.gate.ended == [10 + 3 + 4 + 1]


async def test_usage_without_the_prompt_counts_the_estimated_one():
    s = Scene(Gate())
    s.outlet.chunk(ending(completion_tokens=5, source=pb.Usage.SOURCE_PARTIAL), last=True, tokens=0)
    assert s.gate.ended == [15]


async def test_a_last_chunk_that_cannot_be_read_counts_what_was_seen():
    s = Scene(Gate())
    s.target.chunk = lambda raw, *, last, tokens: None  # type: ignore[method-assign]
    s.outlet.chunk(b"\xff", last=True, tokens=2)
    assert s.gate.ended == [12]


@pytest.mark.parametrize(
    ("work", "counted"),
    [(Work.NOT_DISPATCHED, None), (Work.MAYBE_BILLED, 10), (Work.OUTPUT_SEEN, 10)],
)
async def test_a_failure_counts_unless_nothing_ran(work: Work, counted: int | None):
    s = Scene(Gate())
    s.outlet.fail(Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "lost", work=work))
    assert s.gate.ended == [counted]
    assert len(s.target.faults) == 1


async def test_output_counts_though_the_failure_says_that_nothing_ran():
    s = Scene(Gate())
    s.outlet.chunk(text(), last=False, tokens=1)
    s.outlet.fail(Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "lost"))
    assert s.gate.ended == [11]


async def test_a_handler_that_refuses_leaves_nothing_reserved():
    s = Scene(Gate(), refuses=Fault(errors_pb2.ERROR_REASON_OVERLOADED, "full"))
    assert s.gate.ended == [None]
    assert [fault.message for fault in s.target.faults] == ["full"]
    assert s.request.ended


async def test_an_abandoned_request_counts_what_passed():
    s = Scene(Gate())
    s.outlet.chunk(text(2), last=False, tokens=2)
    s.request.abandon()
    s.request.abandon()
    assert s.gate.ended == [12]
    assert s.handler.cancelled == 1
    assert len(s.target.chunks) == 1


async def test_a_cancelled_request_ends_with_its_handlers_last_chunk():
    s = Scene(Gate())
    s.request.cancel()
    assert s.handler.cancelled == 1
    assert not s.gate.ended
    s.outlet.chunk(ending(**STATED), last=True, tokens=0)
    assert s.gate.ended == [12]


async def test_a_request_out_of_time_counts_its_prompt():
    s = Scene(Gate())
    s.request.expire()
    assert s.gate.ended == [10]
    assert s.handler.cancelled == 1
    (fault,) = s.target.faults
    assert fault.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED


# While it is not decided yet


async def test_a_refused_request_never_reaches_the_handler():
    s = Scene(Gate(at_once=False))
    assert not s.target.faults
    s.gate.decide(USED_UP)
    assert s.target.faults == [USED_UP]
    assert not s.handler.outlets
    assert not len(s.requests)


async def test_a_request_is_opened_once_it_is_decided():
    s = Scene(Gate(at_once=False))
    assert not s.handler.outlets
    s.gate.decide()
    s.outlet.chunk(ending(**STATED), last=True, tokens=0)
    assert s.gate.ended == [12]


async def test_one_that_is_cancelled_before_ends_as_cancelled_and_never_runs():
    s = Scene(Gate(at_once=False))
    s.request.cancel()
    (last,) = s.target.chunks
    assert last.finish_reason == pb.FINISH_REASON_CANCELLED
    assert last.request_id == "r"
    s.gate.decide()
    assert not s.handler.outlets
    assert s.gate.ended == [None]
    assert s.request.ended


@pytest.mark.parametrize("how", ["abandon", "expire"])
async def test_one_that_is_given_up_before_never_runs(how: str):
    s = Scene(Gate(at_once=False))
    getattr(s.request, how)()
    s.gate.decide()
    assert not s.handler.outlets
    assert s.gate.ended == [None]
    assert len(s.target.faults) == (how == "expire")


async def test_a_bug_of_a_handler_opened_later_ends_the_request(caplog):
    s = Scene(Gate(at_once=False))
    s.handler._refuses = RuntimeError("a bug")  # type: ignore[assignment]
    s.gate.decide()
    (fault,) = s.target.faults
    assert fault.reason == errors_pb2.ERROR_REASON_INTERNAL
    assert s.gate.ended == [10], "whether anything ran is not known"


class Kept:
    """What a handler's cancel holds on to."""


@pytest.mark.parametrize("how", ["last", "fail", "expire", "abandon"])
async def test_nothing_of_an_ended_request_waits_for_the_collector(how: str):
    class Holding(Handler):
        def open(self, request: Any, context: CallContext, outlet: Outlet) -> Callable[[], None]:
            self.outlets.append(outlet)
            kept = Kept()
            self.kept = weakref.ref(kept)
            return lambda: [outlet, kept].clear()

    s = Scene(Gate(at_once=False))
    holding: Any = Holding()
    s.request._target._handler = holding  # type: ignore[attr-defined]
    gc.disable()
    try:
        s.gate.decide()
        assert holding.kept() is not None
        outlet = holding.outlets.pop()
        if how == "last":
            outlet.chunk(ending(**STATED), last=True, tokens=0)
        elif how == "fail":
            outlet.fail(USED_UP)
        else:
            getattr(s.request, how)()
        del s.request, outlet
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert holding.kept() is None
    finally:
        gc.enable()


# Estimates


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"prompt": PROMPT}, 10 + 1024),
        ({"prompt": PROMPT, "sampling": pb.Sampling(max_tokens=50)}, 60),
        ({"prompt": PROMPT, "sampling": pb.Sampling(max_tokens=50, n=3)}, 160),
        ({"prompt": PROMPT, "sampling": pb.Sampling(n=2)}, 10 + 2 * 1024),
        ({"prompt": "", "prompt_token_ids": [5] * 30}, 30 + 1024),
        ({"prompt": "河" * 4}, 3 + 1024),
    ],
)
async def test_a_request_is_reserved_for_its_prompt_and_its_longest_answer(asked, tokens):
    gate = Gate()
    Scene(gate, **asked)
    assert gate.asked[0][0] == tokens


def test_images_count_by_number_and_not_by_size():
    image = pb.ContentPart(image=pb.Image(data=b"x" * 100_000, media_type="image/png"))
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="abcd"), image, image])
    assert estimated_input(pb.GenerateRequest(messages=[message])) == 2001


# The small RPCs


async def _answer() -> model_pb2.EmbedResponse:
    return model_pb2.EmbedResponse()


async def test_a_small_rpc_is_counted_as_what_it_used():
    gate = Gate()
    await metered_reply(gate, principal(), "m", 9, _answer, lambda _: 4)
    await metered_reply(gate, principal(), "m", 9, _answer, lambda _: None)
    assert gate.ended == [4, 9]


async def test_a_relay_is_not_counted_for_those_it_speaks_for():
    gate = Gate()
    await metered_reply(gate, principal(RULES, "relay"), "m", 9, _answer, lambda _: 4)
    assert not gate.asked


@pytest.mark.parametrize(("work", "counted"), [(Work.NOT_DISPATCHED, None), (Work.MAYBE_BILLED, 9)])
async def test_a_small_rpc_that_fails_counts_unless_nothing_ran(work, counted):
    gate = Gate()

    async def fails() -> model_pb2.EmbedResponse:
        raise Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "lost", work=work)

    with pytest.raises(Fault):
        await metered_reply(gate, principal(), "m", 9, fails, lambda _: 4)
    assert gate.ended == [counted]


async def test_a_caller_who_leaves_before_it_is_decided_holds_nothing():
    gate = Gate(at_once=False)
    waiting = asyncio.create_task(metered_reply(gate, principal(), "m", 9, _answer, lambda _: 4))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=BOUND_S)
    gate.decide()
    assert gate.ended == [None]


async def test_a_caller_who_leaves_as_it_is_decided_holds_nothing():
    gate = Gate(at_once=False)
    waiting = asyncio.create_task(metered_reply(gate, principal(), "m", 9, _answer, lambda _: 4))
    await asyncio.sleep(0)
    gate.decide()
    waiting.cancel()
    await asyncio.wait([waiting], timeout=BOUND_S)
    assert waiting.cancelled()
    assert gate.ended == [None]
