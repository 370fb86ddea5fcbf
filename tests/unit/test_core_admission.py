"""Seats in the waiting lines, of which each class has some for itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.admission import CLASSES, RANK, Seats, codel_target
from services.router.core.policy import AdmissionRules, ClassRules, Objective, PriorityClass

SYSTEM, INTERACTIVE, BATCH = (RANK[klass] for klass in CLASSES)


def rules(seats: int, *floors: float) -> AdmissionRules:
    classes = {klass: ClassRules(floor) for klass, floor in zip(CLASSES, floors, strict=True)}
    return AdmissionRules(max_waiting=seats, classes=classes)


def taken(seats: Seats, rank: int, tries: int) -> int:
    return sum(seats.take(rank) for _ in range(tries))


def test_a_class_gets_its_own_seats_and_the_shared_ones():
    seats = Seats(rules(20, 0.05, 0.5, 0.1))
    assert taken(seats, BATCH, 100) == 2 + 7
    assert taken(seats, INTERACTIVE, 100) == 10
    assert taken(seats, SYSTEM, 100) == 1
    assert len(seats) == 20


def test_a_seat_that_is_given_back_is_free_for_whoever_may_have_it():
    seats = Seats(rules(10, 0.1, 0.5, 0.1))
    taken(seats, BATCH, 10)
    assert not seats.take(BATCH)
    taken(seats, INTERACTIVE, 5)
    seats.give_back(BATCH)
    assert seats.take(INTERACTIVE), "a shared seat"
    assert not seats.take(BATCH)


def test_classes_that_are_not_mentioned_share_what_is_left():
    assert taken(Seats(AdmissionRules(max_waiting=5, classes={})), BATCH, 9) == 5


def test_no_seats_admit_nobody():
    assert not Seats(rules(0, 0.05, 0.5, 0.1)).take(SYSTEM)


def test_more_cannot_be_reserved_than_there_is():
    with pytest.raises(ValueError, match="reserved"):
        Seats(rules(10, 0.5, 0.5, 0.5))


def test_with_fewer_seats_nobody_loses_one_and_nobody_new_gets_one():
    seats = Seats(rules(10, 0.0, 0.5, 0.0))
    taken(seats, BATCH, 5)
    seats.set_rules(rules(4, 0.0, 0.5, 0.0))
    assert len(seats) == 5
    assert not seats.take(INTERACTIVE)
    for _ in range(3):
        seats.give_back(BATCH)
    assert taken(seats, INTERACTIVE, 5) == 2


@pytest.mark.parametrize(("rule", "target"), [(None, 0.5), (0.2, 0.2), (0.0, 0.0)])
def test_codels_target_is_the_rule_or_a_quarter_of_the_objective(rule, target):
    assert codel_target(AdmissionRules(codel_target=rule), Objective(ttft=2.0)) == target


@given(
    st.integers(0, 30),
    st.tuples(*[st.floats(0, 0.33)] * 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=120),
)
def test_floors_are_honoured_and_the_house_is_never_overfull(total, floors, moves):
    seats = Seats(rules(total, *floors))
    own = [int(floor * total + 1e-9) for floor in floors]
    have = [0, 0, 0]
    for comes, rank in moves:
        if comes:
            unused = sum(max(own[r] - have[r], 0) for r in range(3) if r != rank)
            expected = have[rank] < own[rank] or sum(have) + unused < total
            assert seats.take(rank) == expected
            have[rank] += expected
        elif have[rank]:
            seats.give_back(rank)
            have[rank] -= 1
        assert len(seats) == sum(have) <= total


def test_every_class_has_a_rank_in_the_order_of_importance():
    assert [RANK[klass] for klass in PriorityClass] == [0, 1, 2]
