"""Tokens a second, of steps that follow each other and of those that have stopped."""

from __future__ import annotations

from services.local_engine.output_rate import OutputRate


def test_steps_of_the_last_second_count():
    rate = OutputRate()
    for step in range(300):
        rate.add(step * 0.01, 4)
    assert rate.per_second(2.99) == rate.per_second(3.0)
    assert 396 <= rate.per_second(2.99) <= 404


def test_a_rate_falls_when_the_steps_stop_and_is_nothing_a_second_later():
    rate = OutputRate()
    for step in range(101):
        rate.add(step * 0.01, 4)
    assert rate.per_second(1.5) == 4 * 51
    assert rate.per_second(2.5) == 0


def test_after_a_pause_only_what_came_since_counts():
    rate = OutputRate()
    rate.add(0.0, 1000)
    rate.add(10.0, 7)
    assert rate.per_second(10.0) == 7


def test_a_cleared_one_begins_anew():
    rate = OutputRate()
    rate.add(1.0, 1000)
    rate.clear()
    assert rate.per_second(1.0) == 0
    rate.add(1.01, 5)
    assert rate.per_second(1.01) == 5
