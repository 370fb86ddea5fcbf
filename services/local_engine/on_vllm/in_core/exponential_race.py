"""Draws one token a row, by position: top-k and top-p, then a race of exponential clocks.

The race is the Gumbel-max trick (E. J. Gumbel, 1954; C. J. Maddison, D. Tarlow, T. Minka,
"A* Sampling", NeurIPS 2014): -log E of a unit exponential E is Gumbel noise, and the token with
the largest `logit - log E` is drawn with the probability that softmax gives it. Which rows draw,
and where they are, is position_seeds.py's.

Two ways with one result: on a CPU only the tokens that can win get a random number; elsewhere
every token does, because finding out would make the device wait for the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.local_engine.on_vllm.in_core import philox

REACH = 26.0
"""No token whose logit is so far below the largest can win: -log E lies between -2.9 and 22.9."""

_ROW_CHUNK = 1 << 23
"""Logits that are drawn from at once at most: bounds what lies in memory besides them."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's draw. `top_k` 0 and `top_p` 1 do not limit."""

    seed: int
    choice: int
    position: int
    top_k: int = 0
    top_p: float = 1.0

    @property
    def key(self) -> tuple[int, int]:
        """The seed as two words of 32 bits."""
        return self.seed & philox.WORD, (self.seed >> 32) & philox.WORD


def draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """The tokens drawn: int64 of shape [rows], from float32 logits of shape [rows, vocabulary].

    Temperature is applied already; -inf excludes a token. At the edge of top-k and top-p tokens
    of equal probability stay together, so that no order of sorting decides.
    """
    if logits.device.type == "cpu":
        return torch.tensor([_race(row, one) for row, one in zip(logits, draws, strict=True)])
    step = max(1, _ROW_CHUNK // logits.shape[1])
    parts = [
        race_all(logits[start : start + step], draws[start : start + step])
        for start in range(0, len(draws), step)
    ]
    return torch.cat(parts)


def race_all(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """As `draw`, every token of every row at once, without a word to the host."""
    vocabulary = logits.shape[1]
    top_k = [one.top_k if 0 < one.top_k < vocabulary else 0 for one in draws]
    top_p = [one.top_p for one in draws]
    if any(top_k):
        device_k = torch.tensor([k or vocabulary for k in top_k]).to(logits.device)
        largest = logits.topk(max(top_k), dim=-1).values
        edge = largest.gather(1, (device_k - 1).clamp_(max=max(top_k) - 1).unsqueeze(1))
        limited = (device_k < vocabulary).unsqueeze(1)
        logits = logits.masked_fill((logits < edge) & limited, -torch.inf)
    if min(top_p) < 1.0:
        device_p = torch.tensor(top_p, dtype=torch.float64).to(logits.device).unsqueeze(1)
        probabilities = logits.softmax(dim=-1)
        ordered = probabilities.sort(dim=-1, descending=True).values
        before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
        kept = (before < device_p).sum(dim=-1, keepdim=True)
        edge = ordered.gather(1, (kept - 1).clamp_(min=0))
        logits = logits.masked_fill((probabilities < edge) & (device_p < 1.0), -torch.inf)
    clocks = philox.exponentials(
        [one.key for one in draws],
        [one.position for one in draws],
        [one.choice for one in draws],
        vocabulary,
        logits.device,
    )
    return (logits - clocks.log_()).argmax(dim=-1)


def _race(logits: torch.Tensor, one: Draw) -> int:
    """The token drawn from one row, on a CPU."""
    top = logits.max()
    if not math.isfinite(top):
        # A model that overflows, or a row of which nothing is left: an error would end the engine.
        return int(logits.argmax())
    if 0 < one.top_k < len(logits):
        edge = logits.topk(one.top_k).values[-1]
        logits = logits.masked_fill(logits < edge, -torch.inf)
    candidates = (logits >= top - REACH).nonzero().squeeze(1)
    if one.top_p < 1.0:
        probabilities = logits.softmax(dim=-1)[candidates]
        # What is rarer than this has in sum no more than what top-p leaves out.
        rare = min((1.0 - one.top_p) / len(logits), float(probabilities.max()))
        likely = probabilities[probabilities >= rare]
        ordered = likely.sort(descending=True).values
        before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
        kept = max(1, int((before < one.top_p).sum()))
        candidates = candidates[probabilities >= ordered[kept - 1]]
    if 4 * len(candidates) < len(logits):
        clocks = philox.exponentials_of(candidates, one.key, one.position, one.choice)
    else:  # four columns share a counter: all of them are cheaper than each for itself
        everyone = philox.exponentials([one.key], [one.position], [one.choice], len(logits))
        clocks = everyone[0, candidates]
    return int(candidates[(logits[candidates] - clocks.log_()).argmax()])
