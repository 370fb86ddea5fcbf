"""How long a step of an engine should take, and how much longer it does. Pure.

step = b0 + b1·prefill_tokens + b2·decode_tokens + b3·context_tokens, as in LLM serving
simulators; the coefficients are given, or fitted by recursive least squares with forgetting
(Ljung, "System Identification", ch. 11).
"""

from __future__ import annotations

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


class StepModelFit:
    """Learns a StepModel from the steps seen. Features are scaled to be of order one."""

    _SCALE = (1.0, 1e-3, 1e-2, 1e-4)
    _FORGET = 1 - 1 / 4000  # long: a slow spell must show as a ratio, not become the norm
    _UNCERTAIN = 1e3
    _SOUND_AFTER = 32

    def __init__(self) -> None:
        self._theta = [0.0] * 4
        self._p = [[1e3 if i == j else 0.0 for j in range(4)] for i in range(4)]
        self.steps = 0

    @property
    def sound(self) -> bool:
        """Whether enough steps have been seen for predictions to mean something."""
        return self.steps >= self._SOUND_AFTER

    def predict(self, prefill: float, decode: float, context: float) -> float:
        """Seconds that a step should take by what has been seen; may be poor before `sound`."""
        x = self._features(prefill, decode, context)
        return sum(t * v for t, v in zip(self._theta, x, strict=True))

    def learn(self, prefill: float, decode: float, context: float, seconds: float) -> None:
        """Takes one step into account."""
        x = self._features(prefill, decode, context)
        px = [sum(row[j] * x[j] for j in range(4)) for row in self._p]
        # Forgetting while steps are all alike would make the next unlike one explode.
        uncertain = sum(self._p[i][i] for i in range(4)) > self._UNCERTAIN
        forget = 1.0 if uncertain else self._FORGET
        weight = forget + sum(x[i] * px[i] for i in range(4))
        gain = [v / weight for v in px]
        error = seconds - sum(t * v for t, v in zip(self._theta, x, strict=True))
        self._theta = [t + g * error for t, g in zip(self._theta, gain, strict=True)]
        for i in range(4):
            for j in range(4):
                self._p[i][j] = (self._p[i][j] - gain[i] * px[j]) / forget
        self.steps += 1

    def _features(self, prefill: float, decode: float, context: float) -> tuple[float, ...]:
        raw = (1.0, prefill, decode, context)
        return tuple(v * s for v, s in zip(raw, self._SCALE, strict=True))
