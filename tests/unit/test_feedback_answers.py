"""What may be judged, for how long, and what counts of it."""

from __future__ import annotations

import itertools

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.model_handler import CallContext
from services.chassis.principal import Principal
from services.router.core.values import Tier
from services.router.feedback.answers import Judgement
from services.router.feedback.intake import RememberedOutlet
from services.router.feedback.memory import MemoryAnswers

ENGINE = ("river", "local", "engine-1")
SAID = [Judgement(r, c) for r, c in itertools.product((None, 1, 5), (None, False, True))]


@pytest.mark.parametrize("known", SAID)
@pytest.mark.parametrize("given", SAID)
def test_what_is_said_later_only_adds_to_what_is_known(known: Judgement, given: Judgement) -> None:
    agrees = all(
        before is None or now is None or before == now
        for before, now in ((known.rating, given.rating), (known.completed, given.completed))
    )
    assert given.contradicts(known) is not agrees
    if agrees:
        both = given.joined(known)
        assert not known.contradicts(both)
        assert not given.contradicts(both)
        # What is counted now and what was counted before is all of it, and nothing twice.
        new = given.beyond(known)
        assert new.joined(known) == both
        assert all(a is None or b is None for a, b in zip(new, known, strict=True))


async def test_an_answer_is_no_longer_known_when_its_window_is_over() -> None:
    now = 100.0
    answers = MemoryAnswers(10, 60.0, lambda: now)
    answers.remember("shop", "r-1", ENGINE)
    now = 160.0
    assert (await answers.judge("shop", "r-1", Judgement(4))).answered == ENGINE
    now = 160.1
    with pytest.raises(Exception, match="is remembered here"):
        await answers.judge("shop", "r-1", Judgement(4))


async def test_a_flood_costs_the_oldest_answers_and_their_judgements_and_no_memory() -> None:
    answers = MemoryAnswers(100, 60.0, lambda: 0.0)
    for n in range(1000):
        answers.remember("shop", f"r-{n}", ("river", "local", f"engine-{n}"))
        await answers.judge("shop", f"r-{n}", Judgement(5))
    assert len(answers) == len(answers._judged) == 100
    assert (await answers.judge("shop", "r-900", Judgement(5))).new == Judgement()
    with pytest.raises(Exception, match="is remembered here"):
        await answers.judge("shop", "r-899", Judgement(5))


async def test_backends_that_come_and_go_leave_nothing_behind() -> None:
    answers = MemoryAnswers(10, 60.0, lambda: 0.0)
    for n in range(10_000):
        answers.remember("shop", f"r-{n}", ("river", "local", f"engine-{n}"))
    assert len(answers._kinds) <= 4096
    assert (await answers.judge("shop", "r-9999", Judgement(1))).answered[2] == "engine-9999"


def test_of_a_shared_answer_the_last_chunk_says_where_it_was_made() -> None:
    remembered: list[tuple[str, str, Tier, str]] = []
    passed: list[bytes] = []

    class Sink:
        def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
            passed.append(raw)

        def fail(self, fault: object) -> None: ...

    context = CallContext(Principal("shop", "t", frozenset(), 0.0, "t"), "r-1", 1.0)
    outlet = RememberedOutlet(
        Sink(),
        context,
        "river",
        lambda c, model, tier, backend: remembered.append((c.request_id, model, tier, backend)),
    )
    first = pb.GenerateChunk(text="a").SerializeToString()
    receipt = pb.RouteReceipt(tier=pb.TIER_CLOUD, backend_id="cloud-1")
    last = pb.GenerateChunk(receipt=receipt).SerializeToString()
    outlet.chunk(first, last=False, tokens=1)
    assert remembered == []
    outlet.chunk(last, last=True, tokens=0)
    assert remembered == [("r-1", "river", Tier.CLOUD, "cloud-1")]
    assert passed == [first, last]
