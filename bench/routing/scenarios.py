"""What is played: hardware, load, failures, and who plays. Data, and sizes that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from random import Random

from bench.routing import tables
from bench.routing.arrivals import STEADY, Gap, Profile, bursts, gamma, minutes, poisson
from bench.routing.cloud import Cloud
from bench.routing.replica import Shape
from bench.routing.simulation import Kill, Plant
from bench.routing.speeds import Antagonists, Slowness, always, even
from bench.routing.workloads import Job, Trace, Workload, lengths
from services.router.core.policy import Objective

REPLICAS = 8
SHAPE = Shape(budget=2048, max_running=512, kv_tokens=430_000, block=tables.MOONCAKE_BLOCK)
"""An H100 with Llama-3.1-8B: 52 GiB of KV cache, a chunk budget of 2048 tokens. With these and the
capacity below, the baselines come out as published in routing.md's table."""


FULL_STEP = 0.04
"""Seconds that a step takes where a replica is said to do all it can: answers come no slower than
25 tokens a second."""


class Hardware(Enum):
    """How fast the replicas are."""

    ALIKE = "alike"
    HALF_SLOW = "half of them twice as slow"
    ANTAGONISTS = "each three times as slow for 10 % of the time"


SPELL = 5.0
"""Seconds of an antagonist's visit, in the mean."""

_WORTH = {
    Hardware.ALIKE: float(REPLICAS),
    Hardware.HALF_SLOW: 0.75 * REPLICAS,
    Hardware.ANTAGONISTS: (0.9 + 0.1 / 3) * REPLICAS,
}
"""Replicas of full speed that do as much."""


def _steady(seed: int) -> Profile:
    return STEADY


@dataclass(frozen=True)
class Entry:
    """A contender, and how many routers it is."""

    policy: str
    routers: int = 1


@dataclass(frozen=True)
class Scenario:
    """One. `load` is in shares of what its replicas can do at most; requests that come before
    `warm` seconds are played and not counted. `profile` is made from the seed."""

    name: str
    title: str
    about: str
    entries: tuple[Entry, ...]
    hardware: Hardware = Hardware.ALIKE
    trace: Trace = Trace.CONVERSATION
    load: float = 0.9
    gap: Gap = poisson
    profile: Callable[[int], Profile] = _steady
    seconds: float = 260.0
    warm: float = 20.0
    objective: Objective = field(default_factory=Objective)
    cloud: Cloud | None = None
    kills: tuple[Kill, ...] = ()

    @property
    def rate(self) -> float:
        """Requests a second where the profile's factor is 1."""
        return self.load * _WORTH[self.hardware] * capacity(self.trace)

    def jobs(self, seed: int, routers: int) -> list[Job]:
        """The requests of a run."""
        workload = Workload(self.trace, self.rate, self.gap, self.profile(seed))
        return workload.jobs(self.seconds, seed, routers)

    def plant(self, seed: int) -> Plant:
        """The replicas of a run."""
        return Plant((SHAPE,) * REPLICAS, self._slowness(seed), kills=self.kills)

    def _slowness(self, seed: int) -> tuple[Slowness, ...]:
        if self.hardware is Hardware.HALF_SLOW:
            return (even,) * (REPLICAS // 2) + (always(2.0),) * (REPLICAS // 2)
        if self.hardware is Hardware.ANTAGONISTS:
            # A stream for each replica, and none of them that of the arrivals.
            return tuple(
                Antagonists(3.0, 0.1, SPELL, Random(f"{seed}/antagonists/{i}"))  # noqa: S311
                for i in range(REPLICAS)
            )
        return ()

    def shorter(self) -> Scenario:
        """A first look at it."""
        if self.kills:
            return self
        return replace(self, seconds=self.warm + 0.25 * (self.seconds - self.warm))


@cache
def capacity(trace: Trace) -> float:
    """Requests a second at which a replica's steps take FULL_STEP in the mean, with nothing found
    in its prefix cache.

    From the step's costs: each request adds its prefill once, and to as many steps as it has output
    tokens a decode and the context that it holds by then.
    """
    costs, count = SHAPE.costs, 50_000
    # A fixed seed: the load is the same for all.
    drawn = lengths(trace, Random("capacity"))  # noqa: S311
    spent = 0.0
    for _ in range(count):
        prompt, output = next(drawn)
        held = output * (prompt + output / 2)
        spent += costs.prefill * prompt + costs.decode * output + costs.context * held
    return (1.0 - costs.base / FULL_STEP) * count / spent


_ALONE = ("round-robin", "p2c", "lor", "peak-ewma", "gie", "c3", "prequal", "lmetric", "oracle")
_OF_FOUR = ("lor", "c3", "lmetric", "core")
_ALL = (
    *(Entry(name) for name in (*_ALONE, "core", "core-misjudged")),
    *(Entry(name, 4) for name in _OF_FOUR),
)
_FEW = tuple(Entry(name) for name in ("lor", "c3", "lmetric", "oracle", "core"))

CAPS = (50, 70, 85, 100, 115, 130, 150, 170, 185, 200, 215, 230, 250)
_OVERFLOW = (*(Entry(f"cap-{cap}") for cap in CAPS), Entry("gie-saturation"), Entry("core"))
OVERFLOW_OBJECTIVE = Objective(ttft=1.0, tpot=0.06)
BURST_PERIOD = 60.0


def _bursts(seed: int) -> Profile:
    return bursts(0.6, 1.4, BURST_PERIOD, 0.5)


def _minutes(seed: int) -> Profile:
    return minutes(tables.MINUTE_PEAK, 10, Random(f"{seed}/minutes"))  # noqa: S311


SCENARIOS = (
    Scenario(
        "alike",
        "S1, replicas alike",
        "Eight alike at 90 % load, Azure conversation, Poisson.",
        _ALL,
    ),
    Scenario(
        "half-slow",
        "S2, half of them slow",
        "The same, half of the replicas twice as slow; 90 % of what these eight can do.",
        _ALL,
        Hardware.HALF_SLOW,
    ),
    Scenario(
        "antagonists",
        "S3, antagonists",
        "The same, each replica three times as slow for 10 % of the time, in spells of 5 s in the "
        "mean; 90 % of what these eight can do.",
        _ALL,
        Hardware.ANTAGONISTS,
    ),
    Scenario(
        "clumps",
        "Arrivals in clumps",
        "As S1, gaps between arrivals with a coefficient of variation of 3.",
        _FEW,
        gap=gamma(3.0),
    ),
    Scenario(
        "minutes",
        "Busy minutes",
        "As S1 at 60 % load in the mean, gaps as in the trace (CV 1.09), ten minutes of which the "
        "busiest has 1.52 times the mean load.",
        _FEW,
        load=0.6,
        gap=gamma(tables.CONVERSATION_CV),
        profile=_minutes,
        seconds=600.0,
    ),
    Scenario(
        "code",
        "Code",
        "Azure code at 50 % load, gaps as in the trace (CV 13.2): hundreds at once, then nobody.",
        _FEW,
        trace=Trace.CODE,
        load=0.5,
        gap=gamma(tables.CODE_CV),
        seconds=420.0,
    ),
    Scenario(
        "prefixes",
        "Prompts that begin alike",
        "Mooncake's lengths, 36.6 % of blocks shared, at 90 % of what eight replicas without any "
        "prefix cache can do.",
        tuple(
            Entry(name)
            for name in ("lor", "c3", "oracle", "core-no-affinity", "core-assumed", "core")
        ),
        trace=Trace.MOONCAKE,
        seconds=600.0,
        warm=100.0,
    ),
    Scenario(
        "overflow",
        "Overflow",
        f"Replicas alike, load that jumps between 0.6 and 1.4 times what they can do, "
        f"{BURST_PERIOD / 2:g} s each, and a cloud.",
        _OVERFLOW,
        load=1.0,
        profile=_bursts,
        seconds=380.0,
        objective=OVERFLOW_OBJECTIVE,
        cloud=Cloud(),
    ),
    Scenario(
        "overflow-mixed",
        "Overflow, mixed hardware",
        "The same, half of the replicas twice as slow.",
        _OVERFLOW,
        Hardware.HALF_SLOW,
        load=1.0,
        profile=_bursts,
        seconds=380.0,
        objective=OVERFLOW_OBJECTIVE,
        cloud=Cloud(),
    ),
    Scenario(
        "kill",
        "A replica killed",
        "Eight alike at 80 % load; one of them dies after 100 s and is back 40 s later.",
        (Entry("lor"), Entry("c3"), Entry("core"), Entry("core", 4)),
        load=0.8,
        seconds=200.0,
        kills=(Kill(backend=2, at=100.0, back=140.0),),
    ),
)

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
