"""Measures how busy an engine is, from its jobs and steps. Pure: the clock is passed in.

The engine reports what happens to each job through a `JobLoad`, and closes each step with
`step`. Nothing is sampled or polled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from services.local_engine.engine import EngineLoad
from services.local_engine.heartbeat import Heartbeat
from services.local_engine.output_rate import OutputRate
from services.local_engine.step_model import StepModel, StepModelFit

_RATIO_WEIGHT = 0.2  # routing's α for the speed ratio
_RATIO_BOUNDS = (0.1, 10.0)
_RATIO_HALF_LIFE_S = 5.0
"""How fast a ratio is forgotten while nothing runs. An idle engine has no steps that could correct
it, and gets none while routers go by it."""
_AVERAGE_WEIGHT = 0.1
_PREFILL_WEIGHT = 0.03
"""Smaller: requests last for hundreds of steps. A router that goes by a short average lets the most
in when prompts happen to pause, and finds each answer slower than foreseen."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step computed: prompt tokens, sequences decoded, and the context that they held."""

    prefill: int
    decodes: int
    context: int


class JobLoad:
    """What one job weighs, from `LoadMeter.admit` until `end`. Ending twice is harmless."""

    __slots__ = ("_choices", "_context", "_meter", "_prompt", "_to_read", "unread")

    def __init__(self, meter: LoadMeter, prompt_tokens: int, choices: int, held: int) -> None:
        self._meter = meter
        self._prompt = prompt_tokens
        self._to_read = self.unread = max(0, prompt_tokens - held)
        self._context = 0
        self._choices = choices
        if not meter.sequences:
            meter.heartbeat.begins()
        meter.sequences += choices
        meter.queued_prefill += self.unread
        meter.unread[self] = None

    @property
    def read(self) -> int:
        """Tokens of a prompt that is not yet read whole which have been computed."""
        return self._to_read - self.unread

    def prefilled(self, cached: int = 0) -> None:
        """The prompt has been read; `cached` of its tokens were not computed."""
        meter = self._meter
        if meter.unread.pop(self, self) is self:
            return
        meter.step_completed += max(0, self._prompt - cached - self.read)
        meter.step_cached += cached
        meter.step_prompts += 1
        meter.queued_prefill -= self.unread
        meter.context += self._prompt - self.read
        meter.decoding += self._choices
        self._context = self._prompt
        self.unread = 0

    def take(self, tokens: int) -> None:
        """So many more tokens of its prompt have been computed; below 0: fewer than thought."""
        self.unread -= tokens
        self._meter.queued_prefill -= tokens
        self._meter.context += tokens

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
            if self not in self._meter.unread:
                self._meter.decoding -= 1

    def end(self) -> None:
        """The job is over."""
        meter = self._meter
        meter.sequences -= self._choices
        if not meter.sequences:
            meter.heartbeat.ends()
        if meter.unread.pop(self, self) is None:
            meter.queued_prefill -= self.unread
            meter.context -= self.read
        else:
            meter.decoding -= self._choices
            meter.context -= self._context
        self._choices = self._context = 0


class LoadMeter:
    """Adds up the load of all jobs and the pace of steps."""

    def __init__(self, clock: Callable[[], float], model: StepModel | None = None) -> None:
        self._clock = clock
        self.heartbeat = Heartbeat(clock)
        self._given = model
        self._rate = OutputRate()
        self.forget_pace()
        self._context_before = 0
        # Written by JobLoad.
        self.sequences = 0
        self.decoding = 0
        self.queued_prefill = 0
        self.context = 0
        self.unread: dict[JobLoad, None] = {}
        self.step_completed = 0
        self.step_cached = 0
        self.step_prompts = 0
        self.step_output = 0

    @property
    def model(self) -> StepModel | None:
        """How long a step should take: as given, or as learned; None until it has been."""
        return self._given or self._fit.model

    def forget_pace(self) -> None:
        """Steps so far were no measure: a warm-up takes what no other step does."""
        self._fit = StepModelFit()
        self._ratio = 1.0
        self._ratio_at = self._clock()
        self._prefill_average = self._step_time = 0.0
        self._steps = self._timed_steps = 0
        self._rate.clear()

    def admit(self, prompt_tokens: int, choices: int, held: int = 0) -> JobLoad:
        """A job has been taken; the returned handle follows it.

        `held` of its prompt's tokens are in the prefix cache and will hardly be computed.
        """
        return JobLoad(self, prompt_tokens, choices, held)

    def guess(self, *, running: int, budget: int) -> StepSize:
        """The step that is about to be closed, for an engine that does not say.

        A prompt in the midst of being read, which more running sequences than decoding ones
        show, has taken all of the step's token `budget` that the others left.
        """
        prefill = self.step_completed
        if running > self.decoding:
            room = max(0, budget - prefill - self.step_output)
            prefill += min(room, self.queued_prefill)
        return self.measured(prefill, max(0, self.step_output - self.step_prompts))

    def measured(self, prefill: int, decodes: int) -> StepSize:
        """The step that is about to be closed, for an engine that counts all but its context."""
        # What new prompts found in the cache is read like what running ones hold.
        return StepSize(prefill, decodes, self._context_before + self.step_cached)

    def step(self, seconds: float | None, size: StepSize | None = None) -> None:
        """Closes a step that took `seconds`; None when its start is not known.

        Without a size it is what the jobs say: the prompts read in it and the tokens put out.
        """
        self.heartbeat.beat()
        if size is None:
            size = self.measured(self.step_completed, max(0, self.step_output - self.step_prompts))
        if self.step_output:
            self._rate.add(self._clock(), self.step_output)
        self._pass_on(size.prefill - self.step_completed)
        self.step_completed = self.step_cached = self.step_prompts = self.step_output = 0
        self._context_before = self.context
        if not size.prefill and not size.decodes:
            return  # bookkeeping of the engine: nothing was computed
        self._steps += 1
        weight = max(_PREFILL_WEIGHT, 1 / self._steps)
        self._prefill_average += weight * (size.prefill - self._prefill_average)
        if seconds is not None and seconds > 0:
            self._time(size, seconds)

    def report(
        self,
        *,
        running: int,
        kv_used_tokens: int,
        kv_total_tokens: int,
        max_running: int,
        prefill_budget: int,
    ) -> EngineLoad:
        """The load now. `running` is the engine's own count, bounded by what is really open.

        It changes nothing, and may be called from another thread.
        """
        running = min(running, self.sequences)
        return EngineLoad(
            running=running,
            waiting=self.sequences - running,
            queued_prefill_tokens=self.queued_prefill,
            context_tokens=self.context,
            kv_used_tokens=kv_used_tokens if self.sequences else 0,
            kv_total_tokens=kv_total_tokens,
            step_time_ratio=self._ratio if self.sequences else self._remembered(self._clock()),
            prefill_tokens_per_step=self._prefill_average,
            output_tokens_per_second=self._rate.per_second(self._clock()),
            max_running=max_running,
            step_time=self._step_time,
            prefill_budget=prefill_budget,
            step_model=self.model,
        )

    def _time(self, size: StepSize, seconds: float) -> None:
        self._timed_steps += 1
        weight = max(_AVERAGE_WEIGHT, 1 / self._timed_steps)
        self._step_time += weight * (seconds - self._step_time)
        features = (size.prefill, size.decodes, size.context)
        now = self._clock()
        before = self._ratio = self._remembered(now - seconds)
        self._ratio_at = now
        model = self.model
        # A learned model only guesses at steps of a size never seen: no ratio follows from that.
        if model is not None and (self._given is not None or self._fit.knows(*features)):
            expected = model.seconds(*features)
            if expected > 0:
                low, high = _RATIO_BOUNDS
                ratio = min(high, max(low, seconds / expected))
                self._ratio += _RATIO_WEIGHT * (ratio - self._ratio)
        if self._given is None:
            self._fit.learn(*features, seconds, before)

    def _remembered(self, now: float) -> float:
        """The ratio of the last steps, after a pause until `now`."""
        pause = max(0.0, now - self._ratio_at)
        kept = math.exp2(-pause / _RATIO_HALF_LIFE_S)
        return 1.0 + (self._ratio - 1.0) * kept

    def _pass_on(self, tokens: int) -> None:
        """Prompt tokens computed beyond the prompts that were completed: of those come first.

        Which prompts they were of is not known. When one completes for which too little was
        counted, what others were given in its stead is taken back, so that the sum stays right.
        """
        for job in self.unread:
            if tokens == 0:
                return
            part = min(tokens, job.unread) if tokens > 0 else max(tokens, -job.read)
            job.take(part)
            tokens -= part
