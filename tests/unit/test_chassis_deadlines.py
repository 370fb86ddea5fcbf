"""Deadlines that share timers: never early, a little late at most, and cheap to forget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.deadlines import FAR_GRAIN_S, NEAR_GRAIN_S, NEAR_S, Deadlines


class Loop:
    """A loop's clock and timers, moved by hand."""

    def __init__(self, start: float = 100.0) -> None:
        self.clock = start
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.clock

    def call_at(self, when: float, then: Callable[[], None]) -> Timer:
        timer = Timer(when, then)
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> list[Timer]:
        return sorted((t for t in self.timers if t.alive), key=lambda t: t.when)

    def run_until(self, end: float) -> None:
        while self.pending and self.pending[0].when <= end:
            timer = self.pending[0]
            self.clock = max(self.clock, timer.when)
            timer.alive = False
            timer.then()
        self.clock = end


class Timer:
    def __init__(self, when: float, then: Callable[[], None]) -> None:
        self.when, self.then, self.alive = when, then, True

    def cancel(self) -> None:
        self.alive = False


class Item:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.expired_at: list[float] = []

    def expire(self) -> None:
        self.expired_at.append(self.loop.clock)


def deadlines(loop: Any) -> Deadlines:
    return Deadlines(loop)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.05),  # after the one before
            st.one_of(st.floats(0, 0.2), st.floats(0, 700)),  # allowed
            st.booleans(),  # ends in time
        ),
        max_size=30,
    )
)
def test_each_expires_once_and_in_time_unless_it_has_ended(requests):
    loop = Loop()
    running = deadlines(loop)
    asked = []
    for pause, allowed, ends in requests:
        loop.run_until(loop.clock + pause)
        item, deadline = Item(loop), loop.clock + allowed
        due = running.add(item, deadline, loop.clock)
        if ends:
            due.discard(item)
        asked.append((item, deadline, allowed, ends))
    loop.run_until(loop.clock + 1000)
    for item, deadline, allowed, ends in asked:
        if ends:
            assert item.expired_at == []
            continue
        (at,) = item.expired_at
        grain = FAR_GRAIN_S if allowed > NEAR_S else NEAR_GRAIN_S
        assert deadline <= at + 1e-9 <= deadline + grain + 1e-6
    assert not loop.pending


def test_requests_that_end_leave_few_timers_and_little_behind():
    loop = Loop()
    running = deadlines(loop)
    for _ in range(10_000):
        item = Item(loop)
        running.add(item, loop.clock + 600, loop.clock).discard(item)
        loop.run_until(loop.clock + 0.0001)
    assert len(running._due) <= 12
    assert len(running._order) == len(running._due)
    assert len(loop.timers) <= 12
    loop.run_until(loop.clock + 601)
    assert not running._due
    assert not loop.pending


def test_one_that_expires_may_add_another():
    loop = Loop()
    running = deadlines(loop)
    second = Item(loop)

    class Chained(Item):
        def expire(self) -> None:
            running.add(second, self.loop.clock, self.loop.clock)

    running.add(Chained(loop), loop.clock + 0.5, loop.clock)
    loop.run_until(loop.clock + 1)
    assert len(second.expired_at) == 1
