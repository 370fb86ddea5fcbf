"""Which variant of an alias a request gets: by weight, and always the same for one affinity key.

Source: weighted rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and
Schomaker 2005): each variant draws an exponential lifetime of rate `weight` from a hash of the
key, and the shortest one wins. A key's draw for a variant depends on no other variant, so that a
changed weight moves keys to or from that variant alone, and no more of them than the shares
demand. The hash is BLAKE2b: processes, restarts and Python versions agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import accumulate
from math import isfinite, log
from random import Random

from services.router.core.policy import Variant

_STEPS = 1 << 52
"""A draw has so many values: the most that leave (n + ½) / _STEPS exact and below 1."""


class Split:
    """The variants of one alias."""

    __slots__ = ("_cumulative", "_draws", "_models")

    def __init__(self, alias: str, variants: Iterable[Variant]) -> None:
        """Weights are relative. ValueError when one is negative or not finite, or all are 0."""
        weights: dict[str, float] = {}
        for variant in variants:
            if not (isfinite(variant.weight) and variant.weight >= 0.0):
                raise ValueError(f"{alias}: {variant.model} has the weight {variant.weight}")
            weights[variant.model] = weights.get(variant.model, 0.0) + variant.weight
        weights = {model: weight for model, weight in weights.items() if weight > 0.0}
        if not weights:
            raise ValueError(f"{alias}: no variant has a weight")
        self._models = tuple(weights)
        self._cumulative = tuple(accumulate(weights.values()))
        self._draws = tuple(
            (model, weight, f"{alias}\0{model}\0".encode()) for model, weight in weights.items()
        )

    def choose(self, key: str, random: Random) -> str:
        """The model for a request; without a key each request draws anew from `random`."""
        if len(self._models) == 1:
            return self._models[0]
        if not key:
            return self._drawn(random.random() * self._cumulative[-1])
        said = key.encode()
        best, longest = "", float("-inf")
        for model, weight, salt in self._draws:
            digest = blake2b(salt + said, digest_size=8).digest()
            uniform = ((int.from_bytes(digest, "little") >> 12) + 0.5) / _STEPS
            lifetime = log(uniform) / weight  # negative: the shortest is the greatest
            if lifetime > longest:
                best, longest = model, lifetime
        return best

    def _drawn(self, point: float) -> str:
        for model, upto in zip(self._models, self._cumulative, strict=True):
            if point < upto:
                return model
        return self._models[-1]
