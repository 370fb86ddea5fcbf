"""Chunks of an answer: numbered, joined while they wait for company, and complete at every end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.cloud_proxy.answer import Delta, ToolFragment
from services.cloud_proxy.chunks import ChunkWriter
from services.cloud_proxy.gathering import Gathering


class Outlet:
    """Keeps what is put in."""

    def __init__(self) -> None:
        self.chunks: list[pb.GenerateChunk] = []
        self.tokens: list[int] = []
        self.lasts: list[bool] = []
        self.fault: Fault | None = None

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self.chunks.append(pb.GenerateChunk.FromString(raw))
        self.tokens.append(tokens)
        self.lasts.append(last)

    def fail(self, fault: Fault) -> None:
        self.fault = fault


class Held(Gathering):
    """Waits until the test says that the time is over."""

    def __init__(self, running: int) -> None:
        super().__init__(1.0, lambda: running)
        self.held: list[Callable[[], None]] = []

    def later(self, flush: Callable[[], None]) -> None:
        self.held.append(flush)

    def over(self) -> None:
        held, self.held = self.held, []
        for flush in held:
            flush()


def writer(outlet: Outlet, gathering: Gathering, **fields) -> ChunkWriter:
    return ChunkWriter(pb.GenerateRequest(model="m", **fields), "r-1", None, outlet, gathering)


def nothing(choice: int, chunk: pb.GenerateChunk, last: bool) -> None:
    """Adds nothing to last chunks."""


def text(outlet: Outlet) -> list[str]:
    return [c.text for c in outlet.chunks]


def test_first_output_goes_at_once_and_what_follows_waits_and_is_joined():
    outlet, company = Outlet(), Held(9)
    out = writer(outlet, company)
    for word in ("a", "b", "c"):
        out.write(Delta(0, word))
    assert text(outlet) == ["a"]
    assert outlet.chunks[0].request_id == "r-1"
    assert out.delivered == 3
    company.over()
    assert text(outlet) == ["a", "bc"]
    assert [c.first_token for c in outlet.chunks] == [0, 1]
    assert outlet.tokens == [1, 2]
    out.write(Delta(0, "d"))
    company.over()
    assert [c.first_token for c in outlet.chunks] == [0, 1, 3]


def test_few_requests_do_not_wait_for_each_other():
    outlet, company = Outlet(), Held(3)
    out = writer(outlet, company)
    for word in ("a", "b", "c"):
        out.write(Delta(0, word))
    assert text(outlet) == ["a", "b", "c"]
    assert not company.held


def test_end_does_not_wait_and_nothing_is_left_behind():
    outlet, company = Outlet(), Held(9)
    out = writer(outlet, company)
    for word in ("a", "b"):
        out.write(Delta(0, word))
    out.close({0: pb.FINISH_REASON_STOP}, nothing)
    assert text(outlet) == ["a", "b", ""]
    assert outlet.chunks[-1].first_token == 2
    assert outlet.lasts == [False, False, True]
    company.over()
    assert len(outlet.chunks) == 3


def test_failure_comes_after_what_waited():
    outlet, company = Outlet(), Held(9)
    out = writer(outlet, company)
    for word in ("a", "b"):
        out.write(Delta(0, word))
    out.fail(Fault(errors_pb2.ERROR_REASON_PROVIDER_ERROR, "it failed"))
    assert text(outlet) == ["a", "b"]
    assert outlet.fault is not None
    out.write(Delta(0, "c"))
    company.over()
    assert text(outlet) == ["a", "b"]


def test_choices_reasoning_and_tools_keep_their_order():
    outlet, company = Outlet(), Held(9)
    out = writer(outlet, company, sampling=pb.Sampling(n=2))
    out.write(Delta(0, reasoning="hm"))
    for delta in (
        Delta(0, reasoning=", so"),
        Delta(0, "x"),
        Delta(1, "y"),
        Delta(1, "z"),
        Delta(0, tools=(ToolFragment(0, "t", "f", "{"),)),
        Delta(0, tools=(ToolFragment(0, arguments="}"),)),
    ):
        out.write(delta)
    company.over()
    said = [(c.index, c.first_token, c.reasoning, c.text, len(c.tool_calls)) for c in outlet.chunks]
    assert said == [
        (0, 0, "hm", "", 0),
        (0, 1, ", so", "x", 0),
        (1, 0, "", "yz", 0),
        (0, 3, "", "", 1),
        (0, 4, "", "", 1),
    ]


def test_hidden_reasoning_is_no_chunk():
    outlet, company = Outlet(), Held(9)
    out = writer(outlet, company, reasoning=pb.Reasoning(include=False))
    out.write(Delta(0, reasoning="hm"))
    assert not out.shows(Delta(0, reasoning="hm"))
    out.write(Delta(0, "a", "hm"))
    assert [(c.text, c.reasoning) for c in outlet.chunks] == [("a", "")]


@pytest.mark.parametrize(
    ("seconds", "running", "worth"), [(0, 99, False), (1, 3, False), (1, 4, True)]
)
def test_waiting_is_worth_it_from_some_requests_on(seconds, running, worth):
    assert Gathering(seconds, lambda: running).worth is worth
