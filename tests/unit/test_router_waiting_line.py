"""The shell of the waiting line: whom it sheds when the line stands, and whom it lets wait."""

from __future__ import annotations

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.router.core.policy import AdmissionRules, Objective, PriorityClass
from services.router.waiting_line import Turn, WaitingLine

OBJECTIVE = Objective(ttft=1.0)
RULES = AdmissionRules(max_wait=60.0)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waiter:
    """A request for which nothing comes free."""

    def __init__(self) -> None:
        self.claim = self
        self.fault: Fault | None = None

    def retry_now(self) -> Turn:
        return Turn.WAITS

    def shed(self, fault: Fault) -> None:
        self.fault = fault


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def line(clock):
    made = WaitingLine(lambda: RULES, clock)
    yield made
    made.close()


def join(line: WaitingLine, waiter: Waiter, objective: Objective | None) -> None:
    refused = line.join(waiter, "m", PriorityClass.INTERACTIVE, 60.0, None, objective)
    assert refused is None


def stand_for(line: WaitingLine, clock: Clock, seconds: float) -> None:
    for _ in range(int(seconds / 0.1)):
        clock.now += 0.1
        line.changed()


async def test_a_line_that_stands_sheds_those_who_can_go_nowhere_else(line, clock):
    waiters = [Waiter() for _ in range(5)]
    for waiter in waiters:
        join(line, waiter, OBJECTIVE)
    stand_for(line, clock, 5.0)
    shed = [waiter for waiter in waiters if waiter.fault is not None]
    assert shed
    assert {waiter.fault.reason for waiter in shed} == {errors_pb2.ERROR_REASON_OVERLOADED}


async def test_who_waits_by_choice_is_never_shed_for_a_standing_line(line, clock):
    waiters = [Waiter() for _ in range(5)]
    for waiter in waiters:
        join(line, waiter, None)
    stand_for(line, clock, 50.0)
    assert [waiter.fault for waiter in waiters] == [None] * 5


async def test_one_who_can_go_nowhere_else_is_not_shed_for_a_line_that_others_choose(line, clock):
    by_choice, private = Waiter(), [Waiter(), Waiter(), Waiter()]
    join(line, by_choice, None)
    for waiter in private:
        join(line, waiter, OBJECTIVE)
    stand_for(line, clock, 5.0)
    assert [waiter.fault for waiter in private] == [None] * 3
    line.leave(by_choice)
    stand_for(line, clock, 5.0)
    assert any(waiter.fault for waiter in private)
