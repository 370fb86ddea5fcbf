"""What a smaller checkpoint loses and gains, from raw scores. Pure: no torch, no clock, no files.

Every loss comes with its spread: texts and questions are drawn again and again, with replacement
(the bootstrap: B. Efron, 1979), the same ones for both models because both saw the same.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

DRAWS = 2000
"""Bootstrap samples for an interval of 95 %."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """One text: its tokens' log-probabilities (natural), and the likeliest token at each."""

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    likeliest: tuple[int, ...]

    @property
    def hits(self) -> int:
        """Tokens that were the likeliest."""
        return sum(a == b for a, b in zip(self.tokens, self.likeliest, strict=True))


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's scores: of every text, and whether it chose the right answer to each question."""

    texts: tuple[TextScore, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and where 95 of 100 samples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What both models score, and what the smaller one loses. Shares are from 0 to 1."""

    texts: int
    tokens: int
    questions: int
    perplexity: tuple[float, float]
    next_token: tuple[float, float]
    answers: tuple[float, float]
    agreement: Interval
    """Share of positions at which both find the same token likeliest."""
    perplexity_growth: Interval
    next_token_loss: Interval
    """Share of the original's right next tokens that are lost, on balance; negative is a gain."""
    answers_loss: Interval


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens a second over the rounds, both in each round."""

    streams: int
    original: tuple[float, ...]
    smaller: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Of the original and of the smaller one."""
        return statistics.median(self.original), statistics.median(self.smaller)

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Smaller to original, round by round: least, median, greatest."""
        each = [b / a for a, b in zip(self.original, self.smaller, strict=True)]
        return min(each), statistics.median(each), max(each)


def accuracy(original: Scores, smaller: Scores, seed: int = 1) -> Accuracy:
    """Compares two models' scores of the same texts and questions."""
    texts = list(zip(original.texts, smaller.texts, strict=True))
    answers = list(zip(original.right, smaller.right, strict=True))
    chance = random.Random(seed)  # noqa: S311 - statistics
    return Accuracy(
        texts=len(texts),
        tokens=sum(len(a.tokens) for a, _ in texts),
        questions=len(answers),
        perplexity=(_perplexity([a for a, _ in texts]), _perplexity([b for _, b in texts])),
        next_token=(_hit_rate([a for a, _ in texts]), _hit_rate([b for _, b in texts])),
        answers=(_share([a for a, _ in answers]), _share([b for _, b in answers])),
        agreement=_interval(texts, _agreement, chance),
        perplexity_growth=_interval(texts, _growth, chance),
        next_token_loss=_interval(
            texts,
            lambda of: _loss(_hit_rate([a for a, _ in of]), _hit_rate([b for _, b in of])),
            chance,
        ),
        answers_loss=_interval(
            answers,
            lambda of: _loss(_share([a for a, _ in of]), _share([b for _, b in of])),
            chance,
        ),
    )


def likeliest_answer(scores: Sequence[tuple[float, int]]) -> int:
    """Which answer a model prefers, each given as its log-probability and length in bytes.

    Per byte, because a longer answer is less likely only for being longer.
    """
    each = [total / max(1, size) for total, size in scores]
    return each.index(max(each))


_T = TypeVar("_T")
_Pairs = Sequence[tuple[TextScore, TextScore]]


def _interval(
    sample: Sequence[_T], value: Callable[[Sequence[_T]], float], chance: random.Random
) -> Interval:
    drawn = sorted(value(chance.choices(sample, k=len(sample))) for _ in range(DRAWS))
    return Interval(value(sample), drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS) - 1])


def _perplexity(texts: Sequence[TextScore]) -> float:
    total = sum(sum(text.logprobs) for text in texts)
    return math.exp(-total / max(1, sum(len(text.logprobs) for text in texts)))


def _hit_rate(texts: Sequence[TextScore]) -> float:
    return sum(text.hits for text in texts) / max(1, sum(len(text.tokens) for text in texts))


def _agreement(texts: _Pairs) -> float:
    same = sum(x == y for a, b in texts for x, y in zip(a.likeliest, b.likeliest, strict=True))
    return same / max(1, sum(len(a.tokens) for a, _ in texts))


def _growth(texts: _Pairs) -> float:
    return _perplexity([b for _, b in texts]) / _perplexity([a for a, _ in texts]) - 1


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(1, len(right))


def _loss(before: float, after: float) -> float:
    return (before - after) / before if before else 0.0
