"""Which of the feasible backends of a tier gets a request: one function for each algorithm.

`predicted` is the default, docs/adr/0006; the others are there to compare with. Pure: what they
remember is in the backends' values, and chance is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from services.router.core.policy import Algorithm
from services.router.core.prediction import outlook
from services.router.core.values import Backend, Terms


class Choice(NamedTuple):
    """A feasible backend: its score (lower is better) and expected seconds to the first token."""

    backend: Backend
    score: float
    ttft: float


Ranking = Callable[[Sequence[Choice], Terms, int, Random], Choice]


def least(choices: Sequence[Choice], random: Random, key: Callable[[Choice], float]) -> Choice:
    """The one with the lowest key; each of the equals with the same probability."""
    best, lowest, equals = choices[0], key(choices[0]), 1
    for choice in choices[1:]:
        value = key(choice)
        if value < lowest:
            best, lowest, equals = choice, value, 1
        elif value == lowest:
            equals += 1
            if random.random() * equals < 1.0:
                best = choice
    return best


def _predicted(choices: Sequence[Choice], terms: Terms, turn: int, random: Random) -> Choice:
    return least(choices, random, lambda choice: choice.score)


def _least_outstanding(
    choices: Sequence[Choice], terms: Terms, turn: int, random: Random
) -> Choice:
    return least(choices, random, _outstanding)


def _power_of_two(choices: Sequence[Choice], terms: Terms, turn: int, random: Random) -> Choice:
    """Mitzenmacher (2001): the emptier of two at random."""
    pair = random.sample(choices, 2) if len(choices) > 1 else choices
    return min(pair, key=_outstanding)


def _c3(choices: Sequence[Choice], terms: Terms, turn: int, random: Random) -> Choice:
    """C3 (NSDI '15): `R − 1/µ + q³/µ`, with the time to the first token as response time R, one
    modelled step as service time 1/µ, and its queue q estimated from what is there."""

    def rank(choice: Choice) -> float:
        ahead = outlook(choice.backend)
        queue = 1.0 + ahead.present / max(choice.backend.load.max_running, 1)
        return choice.backend.ttft - ahead.step + queue**3 * ahead.step

    return least(choices, random, rank)


def _round_robin(choices: Sequence[Choice], terms: Terms, turn: int, random: Random) -> Choice:
    ordered = sorted(choices, key=lambda choice: choice.backend.id)
    return ordered[turn % len(ordered)]


def _weighted(choices: Sequence[Choice], terms: Terms, turn: int, random: Random) -> Choice:
    """At random by the policy's weight of the backend or its zone, else by the registered one."""
    weights = [_weight(choice.backend, terms.weights) for choice in choices]
    if not any(weights):
        return random.choice(choices)
    return random.choices(choices, weights)[0]


def _weight(backend: Backend, weights: Mapping[str, float]) -> float:
    found = weights.get(backend.id)
    return weights.get(backend.zone, backend.weight) if found is None else found


def _outstanding(choice: Choice) -> float:
    return outlook(choice.backend).present


RANKINGS: Mapping[Algorithm, Ranking] = {
    Algorithm.PREDICTED: _predicted,
    Algorithm.LEAST_OUTSTANDING: _least_outstanding,
    Algorithm.POWER_OF_TWO: _power_of_two,
    Algorithm.C3: _c3,
    Algorithm.ROUND_ROBIN: _round_robin,
    Algorithm.WEIGHTED: _weighted,
}
