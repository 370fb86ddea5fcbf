"""What requests are: when they come, how long their prompts and answers are, what they share.

Everything is drawn before a run begins, from random streams of its own: the same seed gives every
policy the same requests, whatever it does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from random import Random

from bench.routing import tables
from bench.routing.arrivals import STEADY, Gap, Profile, poisson, times
from bench.routing.prompts import PromptTree
from bench.routing.quantiles import LogLinear, band


class Trace(Enum):
    """Whose lengths."""

    CONVERSATION = "Azure conversation"
    CODE = "Azure code"
    MOONCAKE = "Mooncake conversation"


@dataclass(slots=True, eq=False)
class Job:
    """One request: what it asks for, and what became of it.

    Times are in seconds since the run began, None until they are known. `delivered` counts the
    output tokens that reached the router before the last failure; `blocks` names the blocks of its
    prompt, `failure` says why it was lost.
    """

    number: int
    arrived: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    router: int = 0
    backend: int = -1
    cloud: bool = False
    attempts: int = 0
    sent: float | None = None
    first: float | None = None
    ended: float | None = None
    delivered: int = 0
    cached: int = 0
    predicted: float = 0.0
    refused: bool = False
    tried: frozenset[int] = field(default_factory=frozenset)

    @property
    def ttft(self) -> float | None:
        """Seconds from the router to the first token, back at the router."""
        return None if self.first is None else self.first - self.arrived

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first."""
        if self.first is None or self.ended is None:
            return None
        return (self.ended - self.first) / (self.output - 1) if self.output > 1 else 0.0


@dataclass(frozen=True)
class Workload:
    """A kind of traffic. `rate` is in requests a second where the profile's factor is 1."""

    trace: Trace
    rate: float
    gap: Gap = poisson
    profile: Profile = STEADY

    def jobs(self, seconds: float, seed: int, routers: int = 1) -> list[Job]:
        """All requests of a run's first seconds, each at a router drawn for it."""
        lengths = Random(f"{seed}/lengths")  # noqa: S311 - nothing secret hangs on it
        doors = Random(f"{seed}/doors")  # noqa: S311
        arrivals = Random(f"{seed}/arrivals")  # noqa: S311
        draw, prompt = _lengths(self.trace), _blocks(self.trace, seed)
        found: list[Job] = []
        for at in times(self.rate, self.profile, self.gap, arrivals):
            if at >= seconds:
                return found
            tokens, output = draw(lengths)
            router = doors.randrange(routers) if routers > 1 else 0
            found.append(Job(len(found), at, tokens, output, prompt(tokens), router))
        raise AssertionError("arrivals never end")


def mean_lengths(trace: Trace, count: int = 20_000) -> tuple[float, float]:
    """Mean tokens of prompt and answer, from draws of a fixed seed."""
    random, draw = Random("mean"), _lengths(trace)  # noqa: S311
    drawn = [draw(random) for _ in range(count)]
    return sum(p for p, _ in drawn) / count, sum(o for _, o in drawn) / count


def lengths(trace: Trace, random: Random) -> Iterator[tuple[int, int]]:
    """Tokens of prompts and of their answers, without end."""
    draw = _lengths(trace)
    while True:
        yield draw(random)


@cache
def _lengths(trace: Trace) -> Callable[[Random], tuple[int, int]]:
    if trace is Trace.CONVERSATION:
        return _conversation()
    rows = {
        Trace.CODE: (tables.CODE_INPUT, tables.CODE_OUTPUT),
        Trace.MOONCAKE: (tables.MOONCAKE_INPUT, tables.MOONCAKE_OUTPUT),
    }
    prompts, answers = (LogLinear(list(zip(tables.AT, row, strict=True))) for row in rows[trace])
    return lambda random: (prompts.draw(random), answers.draw(random))


def _conversation() -> Callable[[Random], tuple[int, int]]:
    prompts = LogLinear(list(zip(tables.AT, tables.CONVERSATION_INPUT, strict=True)))
    answers = [LogLinear(_with_ends(row)) for row in tables.BAND_OUTPUT]

    def draw(random: Random) -> tuple[int, int]:
        tokens = prompts.draw(random)
        return tokens, answers[band(tables.BAND_EDGES, tokens)].draw(random)

    return draw


def _with_ends(row: tuple[int, ...]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = list(zip(tables.BAND_AT, row, strict=True))
    for at, factor, place in tables.BAND_ENDS:
        points.append((at, factor if place is None else factor * row[place]))
    return sorted(points)


def _blocks(trace: Trace, seed: int) -> Callable[[int], tuple[int, ...]]:
    if trace is not Trace.MOONCAKE:
        return lambda _: ()
    return PromptTree(tables.MOONCAKE_BLOCK, Random(f"{seed}/prompts")).prompt  # noqa: S311
