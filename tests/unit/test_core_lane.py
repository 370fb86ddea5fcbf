"""The waiting requests of one class in their two orders."""

from hypothesis import given
from hypothesis import strategies as st

from services.router.core.lane import Entry, Lane


class Opaque:
    """A key that cannot be compared."""


def entry(number: int, deadline: float) -> Entry[Opaque]:
    return Entry(deadline, number, float(number), 0.5, 1, False, Opaque())


def filled(*deadlines: float) -> tuple[Lane[Opaque], list[Entry[Opaque]]]:
    lane: Lane[Opaque] = Lane()
    entries = [entry(number, deadline) for number, deadline in enumerate(deadlines)]
    for one in entries:
        lane.add(one)
    return lane, entries


def test_an_empty_lane_has_no_first():
    lane, _ = filled()
    assert (len(lane), lane.earliest(), lane.oldest(), lane.longest_waiting(3)) == (
        0,
        None,
        None,
        [],
    )


def test_the_earliest_deadline_goes_first_and_equals_as_they_came():
    lane, (a, b, c, d) = filled(5.0, 3.0, 5.0, 3.0)
    assert list(lane.in_order(before=4)) == [b, d, a, c]
    assert lane.earliest() is b
    assert lane.oldest() is a
    assert lane.longest_waiting(3) == [a, b, c]
    assert [lane.ahead_of(deadline) for deadline in (2.0, 3.0, 4.0, 5.0)] == [0, 2, 2, 4]


def test_a_walk_survives_that_those_it_shows_leave_and_others_come():
    lane, entries = filled(*[float(10 - n) for n in range(10)])
    seen = []
    for one in lane.in_order(before=10):
        seen.append(one)
        lane.remove(one)
        lane.add(entry(10 + len(seen), 0.5))
        lane.add(entry(30 + len(seen), 99.0))
    assert seen == entries[::-1]


def test_a_walk_passes_over_those_that_left_before_their_turn():
    lane, (a, b, c) = filled(1.0, 2.0, 3.0)
    walk = lane.in_order(before=3)
    assert next(walk) is a
    lane.remove(a)
    lane.remove(b)
    assert list(walk) == [c]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=80))
def test_it_is_what_sorting_would_give(moves):
    lane: Lane[Opaque] = Lane()
    inside: list[Entry[Opaque]] = []
    for number, (comes, which) in enumerate(moves):
        if comes or not inside:
            one = entry(number, float(which))
            lane.add(one)
            inside.append(one)
        else:
            lane.remove(inside.pop(which % len(inside)))
        assert list(lane.in_order(before=1000)) == sorted(inside)
        assert lane.longest_waiting(1000) == inside
        assert lane.oldest() is (inside[0] if inside else None)
