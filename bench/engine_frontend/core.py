"""Stands in for vLLM's engine core: every running sequence gets a token a step, as fast as asked.

What it hands on are the bytes that the real one sends, decoded by vLLM's own decoder. It keeps the
books of the measurement: the CPU time of this thread without its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

_TURNS = 3
"""Rounds of the loop that everybody else gets after a step: tasks, sockets, then what they woke."""


@dataclass(slots=True)
class _Sequence:
    """One request inside."""

    id: str
    left: int
    at: int
    prompt: int
    first: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What one step cost in front of the core: seconds of CPU, and the tokens it brought."""

    seconds: float
    tokens: int


class SyntheticCore:
    """vLLM's client of an engine core, as far as AsyncLLM uses it. `words` are its answers' ids.

    Nothing runs while `held`.
    """

    def __init__(self, words: Sequence[int]) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self.engine_ranks_managed = [0]
        self.steps: list[Step] = []
        self.beginning = 0.0
        """Seconds of CPU until all requests were here."""
        self.held = False
        self.full: tuple[int, asyncio.Event] = (0, asyncio.Event())
        """The event is set once so many sequences are inside."""
        self._words = words
        self._sequences: dict[str, _Sequence] = {}
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._news = asyncio.Event()
        self._own = 0.0
        self._began = 0.0
        self._tokens = 0

    # vLLM's side

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        """What a generating model does."""
        return ("generate",)

    async def add_request_async(self, request: Any) -> None:
        """Takes a request; what its sender pays, the encoding, is paid."""
        self._encoder.encode(request)
        prompt = len(request.prompt_token_ids)
        params = request.sampling_params
        place = 7 * len(self._sequences)
        self._sequences[request.request_id] = _Sequence(
            request.request_id, params.max_tokens, place, prompt
        )
        if self.running == self.full[0]:
            self.full[1].set()
        self._news.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Forgets them."""
        for request_id in request_ids:
            self._sequences.pop(request_id, None)

    async def get_output_async(self) -> Any:
        """The next step's outputs, once everybody has dealt with the one before."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._close_step()
        while self.held or not self._sequences:
            self._news.clear()
            await self._news.wait()
        started = time.thread_time()
        self._began = started - self._own
        raw = self._step()
        self._own += time.thread_time() - started
        return self._decoder.decode(raw)

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing runs here."""

    # The measurement's side

    def release(self) -> None:
        """Lets it run."""
        self.held = False
        self._news.set()

    @property
    def running(self) -> int:
        """Sequences inside."""
        return len(self._sequences)

    def _close_step(self) -> None:
        if self._tokens:
            seconds = time.thread_time() - self._own - self._began
            self.steps.append(Step(seconds, self._tokens))
            self._tokens = 0

    def _step(self) -> Sequence[Any]:
        outputs = []
        words = self._words
        for sequence in tuple(self._sequences.values()):
            sequence.left -= 1
            sequence.at += 1
            output = EngineCoreOutput(sequence.id, [words[sequence.at % len(words)]])
            if sequence.first:
                sequence.first = False
                output.prefill_stats = PrefillStats(num_prompt_tokens=sequence.prompt)
            if sequence.left <= 0:
                output.finish_reason = FinishReason.LENGTH
                del self._sequences[sequence.id]
            outputs.append(output)
        self._tokens = len(outputs)
        stats = SchedulerStats(num_running_reqs=len(self._sequences))
        raw: Sequence[Any] = self._encoder.encode(
            EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)
        )
        return raw
