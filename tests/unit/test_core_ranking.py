"""What each algorithm takes from the feasible backends."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.policy import Algorithm
from services.router.core.prediction import outlook
from services.router.core.ranking import RANKINGS, Choice, least
from services.router.core.values import Backend, Health, Load, Terms, Tier

TERMS = Terms.plain("m")


def choice(name: str, present: int = 0, *, score: float = 1.0, **changes) -> Choice:
    load = changes.pop("load", Load())
    backend = Backend(
        name,
        Tier.LOCAL,
        Health.READY,
        frozenset("m"),
        load=replace(load, running=present),
        **changes,
    )
    return Choice(backend, score, 0.1)


def chosen(algorithm: Algorithm, choices: list[Choice], turn: int = 0, seed: int = 0, **terms):
    return RANKINGS[algorithm](choices, TERMS._replace(**terms), turn, Random(seed)).backend.id


def counts(algorithm: Algorithm, choices: list[Choice], times: int = 4000, **terms) -> Counter:
    rank, random = RANKINGS[algorithm], Random(7)
    said = TERMS._replace(**terms)
    return Counter(rank(choices, said, turn, random).backend.id for turn in range(times))


FOUR = [choice("d", 3), choice("a", 1), choice("c", 2), choice("b", 9)]


@pytest.mark.parametrize("algorithm", Algorithm)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 10**6), st.integers(0, 9)
)
def test_every_algorithm_takes_one_of_those_given_and_alike_for_a_seed(
    algorithm, loads, turn, seed
):
    choices = [choice(str(n), present) for n, present in enumerate(loads)]
    first = chosen(algorithm, choices, turn, seed)
    assert first in {c.backend.id for c in choices}
    assert first == chosen(algorithm, choices, turn, seed)


def test_there_is_a_ranking_for_every_algorithm():
    assert set(RANKINGS) == set(Algorithm)


def test_predicted_takes_the_lowest_score_whatever_the_load():
    choices = [choice("idle", 0, score=3.0), choice("good", 9, score=2.0)]
    assert chosen(Algorithm.PREDICTED, choices) == "good"


def test_lor_takes_the_fewest_requests_whatever_the_score():
    assert chosen(Algorithm.LEAST_OUTSTANDING, FOUR) == "a"
    choices = [choice("few", 1, score=9.0), choice("many", 2, score=1.0)]
    assert chosen(Algorithm.LEAST_OUTSTANDING, choices) == "few"


@pytest.mark.parametrize("algorithm", [Algorithm.PREDICTED, Algorithm.LEAST_OUTSTANDING])
def test_equals_share_alike(algorithm):
    shares = counts(algorithm, [choice(name, 2) for name in "abcd"] + [choice("e", 3, score=2.0)])
    assert shares["e"] == 0
    for name in "abcd":
        assert 850 < shares[name] < 1150


def test_power_of_two_never_takes_the_fullest_and_prefers_the_emptier_ones():
    shares = counts(Algorithm.POWER_OF_TWO, FOUR)
    assert shares["b"] == 0
    # Of six pairs, three hold the emptiest, two the next one without it, one the third with b.
    for name, pairs in (("a", 3), ("c", 2), ("d", 1)):
        assert shares[name] / 4000 == pytest.approx(pairs / 6, abs=0.04)


def test_power_of_two_needs_no_second_one_and_breaks_ties_by_chance():
    assert chosen(Algorithm.POWER_OF_TWO, FOUR[:1]) == "d"
    shares = counts(Algorithm.POWER_OF_TWO, [choice("a", 2), choice("b", 2)])
    assert 1800 < shares["a"] < 2200


@pytest.mark.parametrize(("head_start", "first"), [(2.3, "idle"), (2.5, "half")])
def test_c3_weighs_the_response_time_against_the_cube_of_the_queue(head_start, first):
    """Half full is a queue of 1.5: (1.5)³ - 1 = 2.375 steps more than an empty one costs."""
    step = outlook(choice("x").backend).step
    idle = choice("idle", ttft=0.2)
    half = choice("half", 2, ttft=0.2 - head_start * step, load=Load(max_running=4))
    assert chosen(Algorithm.C3, [idle, half]) == first


def test_c3_prefers_the_quicker_of_two_idle_ones():
    assert chosen(Algorithm.C3, [choice("slow", ttft=0.3), choice("quick", ttft=0.2)]) == "quick"


def test_c3_counts_requests_where_the_slots_are_not_known():
    choices = [choice("one", 1, ttft=0.2), choice("none", 0, ttft=0.2)]
    assert chosen(Algorithm.C3, choices) == "none"


def test_round_robin_goes_through_all_in_turn_in_whatever_order_they_stand():
    names = [chosen(Algorithm.ROUND_ROBIN, FOUR, turn) for turn in range(8)]
    assert names == list("abcdabcd")
    assert names == [chosen(Algorithm.ROUND_ROBIN, FOUR[::-1], turn) for turn in range(8)]


def test_weighted_shares_by_the_backends_weight_then_its_zones_then_one():
    choices = [
        choice("own", zone="z"),
        choice("zoned", zone="z"),
        choice("plain", zone="y"),
        choice("off"),
    ]
    shares = counts(Algorithm.WEIGHTED, choices, weights={"own": 4.0, "z": 3.0, "off": 0.0})
    assert shares["off"] == 0
    for name, weight in (("own", 4), ("zoned", 3), ("plain", 1)):
        assert shares[name] / 4000 == pytest.approx(weight / 8, abs=0.04)


def test_weighted_goes_by_the_registered_weight_where_the_policy_says_nothing():
    heavy, light, named = choice("heavy"), choice("light"), choice("named")
    heavy.backend.weight, named.backend.weight = 3.0, 9.0
    shares = counts(Algorithm.WEIGHTED, [heavy, light, named], weights={"named": 1.0})
    for name, weight in (("heavy", 3), ("light", 1), ("named", 1)):
        assert shares[name] / 4000 == pytest.approx(weight / 5, abs=0.04)


def test_who_has_no_weight_is_better_than_nobody():
    shares = counts(Algorithm.WEIGHTED, [choice("a"), choice("b")], weights={"a": 0.0, "b": 0.0})
    assert 1800 < shares["a"] < 2200


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_the_least_has_no_rival_below_it(loads, seed):
    choices = [choice(str(n), present) for n, present in enumerate(loads)]
    found = least(choices, Random(seed), lambda c: c.backend.load.running)
    assert found.backend.load.running == min(loads)
