"""A cloud provider as callers see it: a time to the first token, a pace, and a price."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random

from bench.routing.workloads import Job


@dataclass(frozen=True)
class Cloud:
    """Log-normal times: `first` s to the first token in the median, `each` s for each more.

    Prices are in millionths of a US dollar a token; the spreads are standard deviations of the
    logarithm.
    """

    first: float = 0.4
    first_spread: float = 0.3
    each: float = 0.015
    each_spread: float = 0.2
    prompt_price: float = 0.15
    output_price: float = 0.60

    def times(self, count: int, seed: int) -> list[tuple[float, float]]:
        """What so many requests would meet there, whether they go or not."""
        random = Random(f"{seed}/cloud")  # noqa: S311 - nothing secret hangs on it
        draw = random.lognormvariate
        return [
            (self.first * draw(0.0, self.first_spread), self.each * draw(0.0, self.each_spread))
            for _ in range(count)
        ]

    @property
    def first_p95(self) -> float:
        """The 95th percentile of the time to the first token."""
        return self.first * exp(1.645 * self.first_spread)

    def cost(self, job: Job) -> float:
        """What a request costs there."""
        return job.prompt * self.prompt_price + job.output * self.output_price
