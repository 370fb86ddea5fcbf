"""What a routing policy is to the laboratory: what it hears, and what it is asked.

One policy object is one router. It never sees a replica itself, only what a router would be told,
unless it is made with the World on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from random import Random
from typing import Protocol

from bench.routing.replica import Replica, Report, Shape
from bench.routing.workloads import Job


class Elsewhere(Enum):
    """A choice that is no replica."""

    CLOUD = "cloud"
    WAIT = "wait"
    REFUSE = "refuse"


Choice = int | Elsewhere
"""A replica by its number, or elsewhere."""


class Policy(Protocol):
    """One router. Times are in seconds since the run began; replicas are known by number."""

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """Where the job goes now. Waiting jobs are asked for again when something has changed; one
        that is impatient may not wait (on) for a replica where the cloud would take it."""

    def sent(self, job: Job, backend: int, start: int, now: float) -> None:
        """The job is on its way: this router's start number `start` to that replica."""

    def sent_to_cloud(self, job: Job, now: float) -> None:
        """The job is on its way to the cloud."""

    def reported(self, backend: int, report: Report, seen: int, now: float) -> None:
        """A replica's own figures, made when it had seen this router's start number `seen`."""

    def cache_changed(self, backend: int, stored: Sequence[int], removed: Sequence[int]) -> None:
        """What a replica's prefix cache has gained and lost."""

    def first(self, job: Job, now: float) -> None:
        """The first token of a job from where it was last sent."""

    def ended(self, job: Job, now: float) -> None:
        """The last token of a job of this router."""

    def lost(self, backend: int, now: float) -> None:
        """The connection to a replica has ended, and every job of this router there."""

    def back(self, backend: int, now: float) -> None:
        """There is a connection again."""

    # The line of those that wait: who may join, who has waited too long, whose turn it is.

    def join(self, job: Job, now: float) -> bool:
        """Whether a job that was told to wait may do so; else it is refused."""

    def shed(self, now: float) -> Sequence[Job]:
        """Jobs that wait no longer, unserved."""

    def in_order(self, now: float) -> Iterator[Job]:
        """Who is asked for once more, the first one first."""

    def leave(self, job: Job, now: float, *, served: bool) -> None:
        """A job has left the line."""

    @property
    def waiting(self) -> int:
        """Jobs in the line."""


class World(Protocol):
    """What the laboratory itself knows: for oracles, probes and scrapes."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """The replicas as they are at this moment."""

    @property
    def step_ends(self) -> Sequence[float]:
        """When each replica's present step ends."""

    @property
    def round_trip(self) -> float:
        """Seconds from a router to a replica and back."""

    def under_way(self, backend: int) -> Sequence[Job]:
        """Jobs that were sent and have not arrived."""

    def every(self, interval: float, act: Callable[[float], None]) -> None:
        """Calls back, with the time, at every multiple of an interval."""


class Making(Protocol):
    """Makes the policy objects of a run."""

    def __call__(
        self, world: World, shapes: Sequence[Shape], routers: int, random: Random
    ) -> Policy:
        """One router of so many; `random` is its own."""
