"""How long a replica's steps take, and when it is slower than it should be.

The coefficients are those published for Llama-3.1-8B on one H100; see StepCosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Slowness = Callable[[float], float]
"""By which factor steps that begin at a time take longer. Asked with rising times."""


@dataclass(frozen=True)
class StepCosts:
    """step = base + prefill · prompt tokens + decode · sequences + context · tokens held, in s."""

    base: float = 5753e-6
    prefill: float = 17.25e-6
    decode: float = 6.0e-6
    context: float = 0.052e-6

    def seconds(self, prefill: int, decode: int, context: int) -> float:
        """The duration of one step."""
        return self.base + self.prefill * prefill + self.decode * decode + self.context * context


def even(_: float) -> float:
    """As fast as modelled."""
    return 1.0


def always(factor: float) -> Slowness:
    """A slower card, or a slower neighbour that never leaves."""
    return lambda _: factor


class Antagonists:
    """Neighbours that come and go: so many times slower for a share of the time.

    Spells and the pauses between them are exponential, `spell` seconds in the mean.
    """

    def __init__(self, factor: float, share: float, spell: float, random: Random) -> None:
        self._factor = factor
        self._spell = spell
        self._pause = spell * (1.0 - share) / share
        self._random = random
        self._slow = random.random() < share
        self._until = self._length()

    def __call__(self, now: float) -> float:
        """The factor now."""
        while now >= self._until:
            self._slow = not self._slow
            self._until += self._length()
        return self._factor if self._slow else 1.0

    def _length(self) -> float:
        return self._random.expovariate(1.0 / (self._spell if self._slow else self._pause))
