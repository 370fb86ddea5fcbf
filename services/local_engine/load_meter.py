"""Measures how busy an engine is, from its jobs and steps. Pure: the clock is passed in.

The engine reports what happens to each job through a `JobLoad`, and closes each step with
`step`. Nothing is sampled or polled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from services.local_engine.engine import EngineLoad
from services.local_engine.step_model import StepModel, StepModelFit

_RATIO_WEIGHT = 0.2  # routing's α for the speed ratio
_AVERAGE_WEIGHT = 0.1
_RATE_WINDOW_S = 1.0


class JobLoad:
    """What one job weighs, from `LoadMeter.admit` until `end`. Ending twice is harmless."""

    __slots__ = ("_choices", "_context", "_meter", "_queued")

    def __init__(self, meter: LoadMeter, prompt_tokens: int, choices: int) -> None:
        self._meter = meter
        self._queued = prompt_tokens
        self._context = 0
        self._choices = choices
        meter.sequences += choices
        meter.queued_prefill += prompt_tokens

    def prefilled(self, cached: int = 0) -> None:
        """The prompt has been read; `cached` of its tokens were not computed."""
        tokens, self._queued = self._queued, 0
        if tokens:
            self._context += tokens
            self._meter.queued_prefill -= tokens
            self._meter.context += tokens
            self._meter.step_prefill += max(0, tokens - cached)

    def produced(self, tokens: int) -> None:
        """Output tokens of this step."""
        self._context += tokens
        self._meter.context += tokens
        self._meter.step_output += tokens

    def choice_ended(self) -> None:
        """One of the job's choices runs no more."""
        if self._choices:
            self._choices -= 1
            self._meter.sequences -= 1

    def end(self) -> None:
        """The job is over."""
        meter = self._meter
        meter.sequences -= self._choices
        meter.queued_prefill -= self._queued
        meter.context -= self._context
        self._choices = self._queued = self._context = 0


class LoadMeter:
    """Adds up the load of all jobs and the pace of steps."""

    def __init__(self, clock: Callable[[], float], model: StepModel | None = None) -> None:
        self._clock = clock
        self._model = model
        self._fit = StepModelFit()
        self._rates: deque[tuple[float, int]] = deque()
        self._ratio = 1.0
        self._prefill_average = 0.0
        self._step_time = 0.0
        self._steps = 0
        # Written by JobLoad.
        self.sequences = 0
        self.queued_prefill = 0
        self.context = 0
        self.step_prefill = 0
        self.step_output = 0

    def admit(self, prompt_tokens: int, choices: int) -> JobLoad:
        """A job has been taken; the returned handle follows it."""
        return JobLoad(self, prompt_tokens, choices)

    def step(self, seconds: float | None, prefill_tokens: int | None = None) -> None:
        """Closes a step that took `seconds`; None when its start is not known.

        `prefill_tokens` is what it prefilled where the engine knows better than the sum over
        the jobs whose prompt it completed.
        """
        prefill = self.step_prefill if prefill_tokens is None else prefill_tokens
        output = self.step_output
        self.step_prefill = self.step_output = 0
        if output:
            self._rates.append((self._clock(), output))
            self._trim()
        if seconds is None or seconds <= 0:
            return
        self._steps += 1
        weight = max(_AVERAGE_WEIGHT, 1 / self._steps)
        self._prefill_average += weight * (prefill - self._prefill_average)
        self._step_time += weight * (seconds - self._step_time)
        expected = self._expected(prefill, output)
        if expected is not None and expected > 0:
            ratio = min(10.0, max(0.1, seconds / expected))
            self._ratio += _RATIO_WEIGHT * (ratio - self._ratio)
        if self._model is None:
            self._fit.learn(prefill, output, self.context, seconds)

    def report(
        self,
        *,
        running: int,
        kv_used_tokens: int,
        kv_total_tokens: int,
        max_running: int,
        prefill_budget: int,
    ) -> EngineLoad:
        """The load now. `running` is the engine's own count, bounded by what is really open."""
        self._trim()
        running = min(running, self.sequences)
        return EngineLoad(
            running=running,
            waiting=self.sequences - running,
            queued_prefill_tokens=self.queued_prefill,
            context_tokens=self.context,
            kv_used_tokens=kv_used_tokens if self.sequences else 0,
            kv_total_tokens=kv_total_tokens,
            step_time_ratio=self._ratio,
            prefill_tokens_per_step=self._prefill_average,
            output_tokens_per_second=sum(n for _, n in self._rates) / _RATE_WINDOW_S,
            max_running=max_running,
            step_time=self._step_time,
            prefill_budget=prefill_budget,
        )

    def _expected(self, prefill: int, output: int) -> float | None:
        if self._model is not None:
            return self._model.seconds(prefill, output, self.context)
        return self._fit.predict(prefill, output, self.context) if self._fit.sound else None

    def _trim(self) -> None:
        oldest = self._clock() - _RATE_WINDOW_S
        while self._rates and self._rates[0][0] < oldest:
            self._rates.popleft()
