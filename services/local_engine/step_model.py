"""How long a step of an engine should take, given or learned from the steps seen. Pure.

step = b0 + b1·prefill_tokens + b2·decode_tokens + b3·context_tokens, as in LLM serving
simulators. How much longer a step does take is load_meter.py's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepModel:
    """Coefficients in seconds: fixed, per prefilled token, per decoded token, per context token."""

    base: float
    prefill: float
    decode: float
    context: float

    @classmethod
    def parse(cls, text: str) -> StepModel:
        """Reads "b0,b1,b2,b3" in microseconds. Raises ValueError."""
        parts = [float(part) / 1e6 for part in text.split(",")]
        if len(parts) != 4 or any(part < 0 for part in parts):
            raise ValueError("must be four numbers in microseconds, none negative: b0,b1,b2,b3")
        return cls(*parts)

    def seconds(self, prefill_tokens: float, decode_tokens: float, context_tokens: float) -> float:
        """The modelled duration of a step."""
        return (
            self.base
            + self.prefill * prefill_tokens
            + self.decode * decode_tokens
            + self.context * context_tokens
        )

    def faster(self, speed: float) -> StepModel:
        """The model of hardware that many times as fast."""
        parts = (self.base, self.prefill, self.decode, self.context)
        return StepModel(*(part / speed for part in parts))


class _Cell:
    """Steps of about one size: how many, their means, and when the last one was."""

    __slots__ = ("count", "last", "means")

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        self.means = [0.0, 0.0, 0.0, 0.0]  # prefill, decode, context, seconds

    def add(self, values: Sequence[float], weight: float) -> None:
        self.count += 1
        means = self.means
        for i in range(4):
            means[i] += weight * (values[i] - means[i])


class StepModelFit:
    """Learns a StepModel: non-negative ridge regression over one representative a size of step.

    Steps are gathered in cells by the magnitude of their prefill, decode and context. So a
    thousand decodes in a row neither drown nor, with time, wash out what a few prefills taught,
    as they would in recursive least squares with forgetting. Context grows while sequences
    decode, so the two are told apart badly: the penalty on all coefficients but the fixed one
    gives to that one what the steps do not tell apart.

    A slow spell must show as a ratio and not become the norm: while the steps are slow, known
    cells all but stand still, and new ones learn what the step would have taken without it.
    """

    _SCALE = (1.0, 1e-3, 1e-2, 1e-4)  # features to order one
    _PENALTY = (1e-6, 2e-3, 2e-3, 2e-3)  # of a coefficient that makes one more typical step
    _AGE = 2000  # steps after which what is not seen again counts for half
    _MOST_CELLS = 256
    _MEMORY = 64  # steps of its kind that a cell averages over
    _OUTLIER = 1.5  # how far a single step, before or after a pause, may stray from its kind
    _SLOW = 1.25
    _SLOW_MEMORY = 65_536  # a change for good is believed after an hour or so
    _FEW = 4
    _SOUND_AFTER = 32
    _REFIT_EVERY = 32
    _REFIT_EVERY_WHEN_SLOW = 4096
    _SHORTEST = 0.1  # of a typical step: shorter ones are no more certain
    _SURPRISE = 1.25
    _SURPRISE_WHEN_SLOW = 2.0  # how slow steps are now is known roughly only

    def __init__(self) -> None:
        self._cells: OrderedDict[tuple[int, int, int], _Cell] = OrderedDict()
        self._steps = 0
        self._model: StepModel | None = None

    @property
    def model(self) -> StepModel | None:
        """What has been learned; None until enough steps have been seen for it to mean much."""
        return self._model

    def knows(self, prefill: float, decode: float, context: float) -> bool:
        """Whether steps of this size have been seen: what is predicted of others is a guess."""
        return _cell_of(prefill, decode, context) in self._cells

    def learn(
        self, prefill: float, decode: float, context: float, seconds: float, ratio: float = 1.0
    ) -> None:
        """Takes one step into account; `ratio` is how much slower than modelled steps are now."""
        key = _cell_of(prefill, decode, context)
        cell = self._cells.get(key)
        is_new = cell is None
        if cell is None:
            cell = self._cells[key] = _Cell()
            if len(self._cells) > self._MOST_CELLS:
                self._cells.popitem(last=False)
        self._cells.move_to_end(key)
        is_slow = self._model is not None and ratio > self._SLOW
        if cell.count < self._FEW:
            seconds /= ratio if is_slow else 1.0
            weight = 1 / (cell.count + 1)
        else:
            usual = cell.means[3]
            seconds = min(max(seconds, usual / self._OUTLIER), usual * self._OUTLIER)
            known = self._SLOW_MEMORY if is_slow else min(cell.count + 1, self._MEMORY)
            weight = 1 / known
        cell.add((prefill, decode, context, seconds), weight)
        self._steps += 1
        cell.last = self._steps
        if self._steps >= self._SOUND_AFTER and self._is_due(cell, is_new, is_slow):
            self._model = self._fit()

    def _is_due(self, cell: _Cell, is_new: bool, is_slow: bool) -> bool:
        if self._model is None:
            return True
        if is_new:
            *size, seconds = cell.means
            expected = self._model.seconds(*size)
            factor = self._SURPRISE_WHEN_SLOW if is_slow else self._SURPRISE
            if not expected / factor <= seconds <= expected * factor:
                return True
        every = self._REFIT_EVERY_WHEN_SLOW if is_slow else self._REFIT_EVERY
        return self._steps % every == 0

    def _fit(self) -> StepModel:
        """Weighted least squares; how far a step strays is taken to grow as its length does."""
        cells = self._cells.values()
        weights = [self._weight(cell) for cell in cells]
        typical = sum(w * cell.means[3] for w, cell in zip(weights, cells, strict=True))
        typical /= sum(weights)
        matrix = [[0.0] * 4 for _ in range(4)]
        vector = [0.0] * 4
        for weight, cell in zip(weights, cells, strict=True):
            prefill, decode, context, seconds = cell.means
            raw = (1.0, prefill, decode, context)
            row = [v * s for v, s in zip(raw, self._SCALE, strict=True)]
            # Unknowns are in typical steps, so that the penalties need no unit.
            length = seconds / typical
            for i in range(4):
                scaled = weight * row[i] / max(length, self._SHORTEST)
                vector[i] += scaled * length
                for j in range(4):
                    matrix[i][j] += scaled * row[j]
        for i in range(4):
            matrix[i][i] += self._PENALTY[i]
        solved = _non_negative(matrix, vector)
        return StepModel(*(v * typical * s for v, s in zip(solved, self._SCALE, strict=True)))

    def _weight(self, cell: _Cell) -> float:
        age = self._steps - cell.last
        return min(cell.count, self._MEMORY) / (1 + age / self._AGE)


def _cell_of(prefill: float, decode: float, context: float) -> tuple[int, int, int]:
    """By powers of two; of four for context, which tells least."""
    return int(prefill).bit_length(), int(decode).bit_length(), int(context).bit_length() // 2


def _non_negative(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    """Solves a positive definite system; unknowns that come out negative are held at zero.

    One at a time, the most negative first, which is not always the exact optimum under the
    bounds, but always a solution within them.
    """
    free = list(range(len(vector)))
    while True:
        solved = [0.0] * len(vector)
        part = _solve([[matrix[i][j] for j in free] for i in free], [vector[i] for i in free])
        for i, value in zip(free, part, strict=True):
            solved[i] = value
        worst = min(free, key=lambda i: solved[i])
        if solved[worst] >= 0:
            return solved
        free.remove(worst)


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Gaussian elimination; without pivoting, which a positive definite matrix needs none of."""
    size = len(vector)
    for k in range(size):
        for i in range(k + 1, size):
            factor = matrix[i][k] / matrix[k][k]
            for j in range(k, size):
                matrix[i][j] -= factor * matrix[k][j]
            vector[i] -= factor * vector[k]
    for k in reversed(range(size)):
        known = sum(matrix[k][j] * vector[j] for j in range(k + 1, size))
        vector[k] = (vector[k] - known) / matrix[k][k]
    return vector
