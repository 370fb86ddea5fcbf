"""Takes vLLM's own statistics of each step. Does not import vLLM: the interface is duck-typed.

vLLM calls `record` once for each message of its engine core, after the outputs of that step
have been handed on, so that the load meter has counted them by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.local_engine.load_meter import LoadMeter


class StepRecorder:
    """A vLLM stat logger for one engine core: its counts, and the pace of its steps."""

    def __init__(self, meter: LoadMeter, clock: Callable[[], float]) -> None:
        self._meter = meter
        self._clock = clock
        self._last: float | None = None
        self.running = 0
        self.kv_usage = 0.0

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        **_: Any,
    ) -> None:
        """Closes a step. The first one after an idle spell has no known beginning."""
        now = self._clock()
        self._meter.step(None if self._last is None else now - self._last)
        if scheduler_stats is not None:
            self.running = int(scheduler_stats.num_running_reqs)
            self.kv_usage = float(scheduler_stats.kv_cache_usage)
        self._last = now if self.running else None

    def log_engine_initialized(self) -> None:
        """Part of vLLM's interface; nothing to say."""

    def log(self) -> None:
        """Part of vLLM's interface; nothing to say."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Part of vLLM's interface; this engine never sleeps."""
