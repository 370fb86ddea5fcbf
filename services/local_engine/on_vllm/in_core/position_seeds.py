"""A logits processor of vLLM that makes a seeded request's draws a function of their positions.

vLLM's own generator of a request counts its draws, so an answer that is resumed elsewhere draws
other tokens than it would have. Here the token at position p of choice i is drawn from (seed, i,
p) and its distribution alone, and all others are excluded: vLLM's sampler can only take it. Runs
after penalties, grammar, temperature and min-p; top-k and top-p of such a request are applied
here. For vLLM's first model runner: the second keys its own draws so; ../seeding.py decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from services.local_engine.on_vllm.in_core.exponential_race import Draw, draw
from services.local_engine.on_vllm.seeding import DRAWS, GREEDY_BELOW


@dataclass(slots=True)
class _Row:
    """One request in the batch. `output` is vLLM's own list of its tokens: it grows."""

    seed: int
    choice: int
    first: int
    top_k: int
    top_p: float
    output: Sequence[int]

    def next(self) -> Draw:
        position = self.first + len(self.output)
        return Draw(self.seed, self.choice, position, self.top_k, self.top_p)


class PositionSeeds(LogitsProcessor):  # type: ignore[misc]
    """Draws for the rows whose parameters carry `seeding.DRAWS`; others are not touched."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """Applied where something is sampled, after temperature; greedy rows are decided before."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the rows of vLLM's persistent batch: removed, added, moved, in that order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            self._place(index, _row(params, output))
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            self._place(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._place(source, replaced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leaves one possible token to each row that draws here. Changes `logits` in place."""
        if not self._rows:
            return logits
        indices = torch.tensor(list(self._rows)).to(logits.device)
        draws = [row.next() for row in self._rows.values()]
        drawn = draw(logits[indices], draws)
        logits[indices] = -torch.inf
        logits[indices, drawn] = 0.0
        return logits

    def _place(self, index: int, row: _Row | None) -> None:
        if row is None:
            self._rows.pop(index, None)
        else:
            self._rows[index] = row


def _row(params: Any, output: Sequence[int]) -> _Row | None:
    """The row of a request's parameters, as ../seeding.py has written them; None for others."""
    asked = (params.extra_args or {}).get(DRAWS)
    if asked is None or params.temperature < GREEDY_BELOW:
        return None
    # vLLM gives each choice its own seed by adding the choice's number to the request's.
    choice = 0 if params.seed is None else params.seed - asked["seed"]
    return _Row(asked["seed"], choice, asked["first"], asked["top_k"], asked["top_p"], output)
