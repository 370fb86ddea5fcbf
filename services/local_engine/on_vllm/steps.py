"""Takes vLLM's own statistics of each step. Does not import vLLM: the interface is duck-typed.

vLLM calls `record` once for each message of its engine core, after the outputs of that step
have been handed on, so that the load meter has counted them by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.local_engine.load_meter import LoadMeter, StepSize


class StepRecorder:
    """A vLLM stat logger for one engine core: its counts, and the pace of its steps.

    A step lasts from the record before it to its own: with asynchronous scheduling the engine
    core's own stopwatch stops too early. `budget` is the most tokens that one step computes,
    `per_decode` the most that it does for one sequence, guesses included.
    """

    def __init__(
        self, meter: LoadMeter, clock: Callable[[], float], budget: int, per_decode: int = 1
    ) -> None:
        self._meter = meter
        self._clock = clock
        self._budget = budget
        self._per_decode = per_decode
        self._last: float | None = None
        self._tells = False
        self.running = 0
        self.kv_usage = 0.0

    def begun(self) -> None:
        """The first job after an idle spell is on its way: a step begins now."""
        self._last = self._clock()

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        **_: Any,
    ) -> None:
        """Closes a step. One after an idle spell whose end was not heard of has no known length."""
        now = self._clock()
        if scheduler_stats is not None:
            self.running = int(scheduler_stats.num_running_reqs)
            self.kv_usage = float(scheduler_stats.kv_cache_usage)
        seconds = None if self._last is None else now - self._last
        self._meter.step(seconds, self._size(scheduler_stats))
        self._last = now if self.running else None

    def _size(self, scheduler_stats: Any) -> StepSize:
        """What the step computed: as vLLM says it, where it does, or else as guessed."""
        details = getattr(scheduler_stats, "iteration_details", None)
        if details is not None:
            self._tells = True
            decodes = int(details.num_generation_requests)
            # A sequence that was preempted reads its whole context again.
            again = max(0, int(details.num_generation_tokens) - decodes * self._per_decode)
            return self._meter.measured(int(details.num_ctx_tokens) + again, decodes)
        if self._tells:
            return self._meter.measured(0, 0)  # it tells of every step that computes anything
        return self._meter.guess(running=self.running, budget=self._budget)

    def log_engine_initialized(self) -> None:
        """Part of vLLM's interface; nothing to say."""

    def log(self) -> None:
        """Part of vLLM's interface; nothing to say."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Part of vLLM's interface; this engine never sleeps."""
