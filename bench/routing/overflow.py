"""Policies to compare with where a cloud takes what the replicas do not: when do they let go?

Each of them sends a request to the cloud when no replica may have it, and never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bench.routing.policy import Choice, Elsewhere, World
from bench.routing.probing import GieQueueKv
from bench.routing.replica import Shape
from bench.routing.tracker import Known
from bench.routing.workloads import Job

GIE_QUEUE = 5
GIE_KV = 0.8
"""A replica with more requests waiting, or more of its KV cache in use, is saturated; GIE's
defaults."""


class StaticCap(Known):
    """At most so many requests at once on a replica, the least busy one first; else the cloud."""

    def __init__(
        self, world: World, shapes: Sequence[Shape], routers: int, random: Random, *, cap: int
    ) -> None:
        super().__init__(shapes, routers, random)
        self._cap = cap / routers

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The least busy of those under the cap."""
        open_ = [i for i in self.alive() if self.backends[i].mine < self._cap]
        if not open_:
            return Elsewhere.CLOUD
        return self.least([self.backends[i].mine for i in open_], open_)


class GieSaturation(GieQueueKv):
    """GIE's saturation detector: the cloud when every replica is saturated; else its scorers among
    those that are not."""

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The highest score of the unsaturated."""
        free = [
            i
            for i in self.alive()
            if self.scraped[i].waiting <= GIE_QUEUE
            and self.scraped[i].kv_used_tokens <= GIE_KV * self.scraped[i].kv_total_tokens
        ]
        return self.among(free) if free else Elsewhere.CLOUD
