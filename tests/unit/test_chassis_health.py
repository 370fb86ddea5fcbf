"""Three questions about a process, and which state answers which of them how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.chassis.health import Health, Question


def answers(health: Health) -> tuple[bool, bool, bool]:
    """Startup, readiness, liveness: whether the answer is yes."""
    asked = (Question.STARTUP, Question.READINESS, Question.LIVENESS)
    return tuple(not health.problem(question) for question in asked)  # type: ignore[return-value]


def hangs(health: Health) -> None:
    health.trouble("engine", "it hangs", restart=True)


def without_database(health: Health) -> None:
    health.trouble("database", "it is away", restart=False)


def leaves(health: Health) -> None:
    health.leaves("shutting down")


STATES: dict[str, tuple[list[Callable[[Health], None]], tuple[bool, bool, bool]]] = {
    "loading": ([], (False, False, True)),
    "serving": ([Health.started], (True, True, True)),
    "draining": ([Health.started, leaves], (True, False, True)),
    "hung": ([Health.started, hangs], (True, False, False)),
    "hung while draining": ([Health.started, leaves, hangs], (True, False, False)),
    "without its database": ([Health.started, without_database], (True, False, True)),
    "both": ([Health.started, without_database, hangs], (True, False, False)),
    "told to end while loading": ([leaves], (False, False, True)),
    "well again": ([Health.started, hangs, lambda h: h.well("engine")], (True, True, True)),
    "well again while draining": (
        [Health.started, hangs, leaves, lambda h: h.well("engine")],
        (True, False, True),
    ),
    "one of two well": (
        [Health.started, without_database, hangs, lambda h: h.well("engine")],
        (True, False, True),
    ),
}


@pytest.mark.parametrize("state", STATES)
async def test_each_state_has_its_three_answers(state: str):
    happened, expected = STATES[state]
    health = Health()
    for event in happened:
        event(health)
    assert answers(health) == expected


async def test_the_reason_is_told_and_the_first_reason_to_leave_stays():
    health = Health()
    health.started()
    hangs(health)
    assert health.problem(Question.READINESS) == health.problem(Question.LIVENESS) == "it hangs"
    health.leaves("the engine is lost")
    health.leaves("shutting down")
    assert health.problem(Question.READINESS) == "the engine is lost"


async def test_whoever_waits_hears_of_a_change_and_of_nothing_else():
    health = Health()
    waiting = asyncio.ensure_future(health.changed())
    await asyncio.sleep(0)
    health.well("nothing")
    await asyncio.sleep(0)
    assert not waiting.done()
    hangs(health)
    await waiting
    again = asyncio.ensure_future(health.changed())
    await asyncio.sleep(0)
    hangs(health)  # said already
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()
