"""What is measured: the engines, the objective, the strategies, the load, and for how long.

Values only. Times are in seconds, sizes in tokens, loads are shares of the local capacity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

MODEL = "sim-river"
"""What callers call the simulated model, in both tiers."""

PROVIDER_FIRST_S, PROVIDER_TOKEN_S = 0.15, 0.015
"""How soon and how fast the provider simulator answers; invented."""


@dataclass(frozen=True)
class Objective:
    """When an answer came in time: its first token, and the mean time of each further one."""

    ttft: float = 1.0
    tpot: float = 0.06


OBJECTIVE = Objective()


@dataclass(frozen=True)
class Engines:
    """The local side: so many sim engines, each with so many slots, and how long a step takes.

    The coefficients are in microseconds: of every step, for each token prefilled, for each sequence
    decoded, for each token of context held. They are such that the slots bound what the engines
    carry, not the cores of the machine that simulates them.
    """

    count: int = 4
    slots: int = 8
    base: float = 18_000.0
    prefill: float = 100.0
    decode: float = 750.0
    context: float = 0.5
    prefill_budget: int = 512

    @property
    def all_slots(self) -> int:
        """Answers that all engines work on at once."""
        return self.count * self.slots

    @property
    def step_model(self) -> str:
        """As the engine's setting has it."""
        return f"{self.base},{self.prefill},{self.decode},{self.context}"

    def tokens_per_second(self, prompt: float, output: float) -> float:
        """What all engines make with every slot taken, for these mean lengths; by the model."""
        each = self.prefill * prompt / output
        held = self.context * (prompt + output / 2)
        step = self.base + self.slots * (self.decode + each + held)
        return self.all_slots / step * 1e6


class Strategy(StrEnum):
    """Who decides where a request goes, and by what."""

    ROUTER = "router"
    CAP = "static-cap"
    LOOSE_CAP = "loose-cap"
    LOCAL = "always-local"
    CLOUD = "always-cloud"

    @property
    def label(self) -> str:
        """For people."""
        return _LABELS[self]

    @property
    def cap(self) -> float | None:
        """Requests in flight locally, as a share of the slots, beyond which the load generator
        sends to the cloud; None where there is no such limit."""
        return _CAPS.get(self)


_CAPS = {Strategy.CAP: 1.0, Strategy.LOOSE_CAP: 1.5}
_LABELS = {
    Strategy.ROUTER: "the router (LOCAL_FIRST)",
    Strategy.CAP: "static cap, 1 × slots",
    Strategy.LOOSE_CAP: "static cap, 1.5 × slots",
    Strategy.LOCAL: "always local (LOCAL_ONLY)",
    Strategy.CLOUD: "always cloud (CLOUD_ONLY)",
}


@dataclass(frozen=True)
class Phase:
    """A stretch of the trace: its load, as a share of the local capacity, and how long it takes."""

    load: float
    seconds: float


def steps(seconds: float, *loads: float) -> tuple[Phase, ...]:
    """Phases of equal length."""
    return tuple(Phase(load, seconds) for load in loads)


SETTLE_S = 1.0
"""Between two looks, besides the time in which the last answers end."""

TAIL_S = 2.0
"""About how long the last answers of a look take."""


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    engines: Engines
    strategies: tuple[Strategy, ...]
    phases: tuple[Phase, ...]
    rounds: int
    saturation: float
    """Seconds in which the local capacity is measured, after a third of that to get under way."""
    kills: int
    """How often an engine is killed, each in a look of its own."""
    kill_phases: tuple[Phase, ...]
    private: float = 0.15
    """Share of requests that must not leave: LOCAL_ONLY."""
    sessions: int = 4
    """Callers; each has a session of its own."""

    @property
    def look_seconds(self) -> float:
        """How long a look takes, about."""
        return sum(phase.seconds for phase in self.phases) + TAIL_S + SETTLE_S

    @property
    def kill_seconds(self) -> float:
        """How long a look with a killed engine takes, about: the engine is started again."""
        return sum(phase.seconds for phase in self.kill_phases) + TAIL_S + 3.0

    @property
    def looks(self) -> int:
        """How many there are, the measurement of the capacity and the warm-up included."""
        return 2 + self.rounds * len(self.strategies) + self.kills

    @property
    def seconds(self) -> float:
        """How long all of it takes, about, the start of the processes included."""
        once = START_S + self.saturation * 4 / 3 + WARM_S + 2 * TAIL_S
        looks = self.rounds * len(self.strategies) * self.look_seconds
        return once + looks + self.kills * self.kill_seconds

    def order(self, number: int) -> tuple[Strategy, ...]:
        """The strategies of a round, each round beginning with another one."""
        at = number % len(self.strategies)
        return self.strategies[at:] + self.strategies[:at]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


START_S = 8.0
WARM_S = 5.0
"""Seconds of load by which the router learns what answers are like here and in the cloud."""

FULL = Plan(
    engines=Engines(),
    strategies=tuple(Strategy),
    phases=steps(7.0, 0.8, 1.5, 0.8, 1.5, 0.8),
    rounds=3,
    saturation=9.0,
    kills=3,
    kill_phases=steps(5.0, 0.9, 0.9),
)

QUICK = replace(
    FULL,
    strategies=(Strategy.ROUTER, Strategy.CAP, Strategy.LOCAL, Strategy.CLOUD),
    phases=steps(2.0, 0.8, 1.5, 0.8),
    rounds=1,
    saturation=3.0,
    kills=1,
    kill_phases=steps(3.0, 0.9, 0.9),
)
"""About a minute: shows the order of things, proves nothing."""

SMOKE = replace(
    QUICK,
    engines=Engines(count=2, slots=4),
    strategies=(Strategy.ROUTER, Strategy.CAP),
    phases=steps(1.5, 0.8, 1.5),
    saturation=2.0,
    kill_phases=steps(1.5, 0.9, 0.9),
)
"""Seconds: shows that the harness works."""
