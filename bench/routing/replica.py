"""One model replica: continuous batching with chunked prefill, as an engine does it, step by step.

Decoding is counted, not played token by token: a step costs the same whether ten sequences run or
two hundred. What it tells others is in its Report.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.routing.prefix_cache import PrefixCache
from bench.routing.speeds import Slowness, StepCosts, even
from bench.routing.workloads import Job

RATIO_WEIGHT = 0.2
"""Of the latest step in the reported ratio of actual to modelled step time."""

PREFILL_WEIGHT = 0.03
AVERAGE_WEIGHT = 0.1
"""Of the latest step in the averages of prefill and of step time, as in the engine's load meter."""


class Report(NamedTuple):
    """What a replica says of itself: the fields of LoadReport that decisions use."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    step_time_ratio: float = 1.0
    prefill_tokens_per_step: float = 0.0
    step_time: float = 0.0
    max_running: int = 0
    prefill_budget: int = 0


@dataclass(frozen=True)
class Shape:
    """What a replica can hold. `budget` is the most tokens of a step, `block` those of a block."""

    budget: int = 2048
    max_running: int = 256
    kv_tokens: int = 430_000
    block: int = 512
    costs: StepCosts = field(default_factory=StepCosts)


@dataclass(slots=True, eq=False)
class _Sequence:
    """One job on its way through a replica.

    `prompt` includes what was delivered or computed before; `done` of it is computed, `cached` was
    never computed here. `began` is the step that gave its first token, `left` how many were to come
    then, that one included.
    """

    job: Job
    prompt: int
    left: int
    done: int = 0
    cached: int = 0
    began: int = -1
    blocks: tuple[int, ...] = ()
    held: int = 0


class News(NamedTuple):
    """What a step brought: jobs with their first token, and jobs that are complete."""

    first: list[Job]
    ended: list[Job]


@dataclass(slots=True)
class Totals:
    """What a replica has done since it was made; for tests and figures."""

    steps: int = 0
    prefilled: int = 0
    cached: int = 0
    produced: int = 0
    preempted: int = 0
    ended: int = 0
    busy: float = 0.0
    most_running: int = 0
    most_kv: int = 0


@dataclass(slots=True)
class Cached:
    """How a replica's prefix cache has changed since the last time anybody asked."""

    stored: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


class Replica:
    """Takes jobs, and makes steps when it is told to. It knows no clock and no network."""

    def __init__(self, shape: Shape = Shape(), slowness: Slowness = even) -> None:
        self.shape = shape
        self.slowness = slowness
        self.totals = Totals()
        self.stepping = False
        self.ratio = 1.0
        self.queued = 0
        self.context = 0
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[_Sequence, None] = {}
        self._prefilling: dict[_Sequence, None] = {}
        self._finishing: dict[int, dict[_Sequence, None]] = {}
        self._decoding = 0
        self._private = 0
        self._cache = PrefixCache()
        self._changes = Cached()
        self._complete: list[_Sequence] = []
        self._step = 0
        self._in_step = 0
        self._prefill_average = 0.0
        self._step_time = 0.0

    def __len__(self) -> int:
        return len(self._running) + len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that are prefilled or decoded."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that are not scheduled yet."""
        return len(self._waiting)

    @property
    def kv_used(self) -> int:
        """Tokens of the KV cache that running sequences hold."""
        return self._private + self._cache.used * self.shape.block

    def held(self, blocks: tuple[int, ...]) -> int:
        """Blocks of a prompt in the prefix cache."""
        return self._cache.held(blocks)

    def take(self, job: Job) -> None:
        """A job arrives; what was delivered of it before is read again as part of its prompt."""
        prompt = job.prompt + job.delivered
        if prompt + job.output - job.delivered > self.shape.kv_tokens:
            raise ValueError(f"a job of {prompt} tokens never fits into the KV cache")
        self._waiting.append(_Sequence(job, prompt, job.output - job.delivered, blocks=job.blocks))
        self.queued += prompt

    def begin(self, now: float) -> float | None:
        """Begins a step; how long it takes, or None when there is nothing to do."""
        while self._room() < self._decoding:
            self._preempt()
        prefill = self._schedule()
        if not prefill and not self._decoding:
            return None
        modelled = self.shape.costs.seconds(prefill, self._decoding, self.context)
        actual = modelled * self.slowness(now)
        self.totals.steps += 1
        self.totals.prefilled += prefill
        self.totals.busy += actual
        weight = max(PREFILL_WEIGHT, 1 / self.totals.steps)
        self._prefill_average += weight * (prefill - self._prefill_average)
        weight = max(AVERAGE_WEIGHT, 1 / self.totals.steps)
        self._step_time += weight * (actual - self._step_time)
        self.ratio += RATIO_WEIGHT * (actual / modelled - self.ratio)
        self.stepping = True
        self._in_step = prefill
        return actual

    def end(self) -> News:
        """The step that began is over."""
        self.stepping = False
        self._in_step = 0
        self._step += 1
        decoded = self._decoding
        self.context += decoded
        self._private += decoded
        self.totals.produced += decoded
        ended: list[Job] = []
        for sequence in self._finishing.pop(self._step, ()):
            self._decoding -= 1
            self._drop(sequence)
            ended.append(sequence.job)
        first: list[Job] = []
        for sequence in self._complete:
            self.totals.produced += 1
            if not sequence.job.delivered:
                first.append(sequence.job)
            sequence.began = self._step
            self._publish(sequence)
            if sequence.left == 1:
                self._drop(sequence)
                ended.append(sequence.job)
            else:
                self._decoding += 1
                last = self._step + sequence.left - 1
                self._finishing.setdefault(last, {})[sequence] = None
        self._complete.clear()
        self._make_room()
        self.totals.ended += len(ended)
        self.totals.most_kv = max(self.totals.most_kv, self.kv_used)
        return News(first, ended)

    def report(self) -> Report:
        """Its load between two steps, or as the last one left it."""
        return Report(
            len(self._running),
            len(self._waiting),
            # What a step is about to compute is not computed yet.
            self.queued + self._in_step,
            self.context,
            self.kv_used,
            self.shape.kv_tokens,
            self.ratio,
            self._prefill_average,
            self._step_time,
            self.shape.max_running,
            self.shape.budget,
        )

    def cache_changes(self) -> Cached:
        """What its prefix cache has gained and lost since this was last asked."""
        changes, self._changes = self._changes, Cached()
        return changes

    def kill(self) -> list[Job]:
        """The process dies: the jobs that were here, with what was delivered of them.

        Whoever calls it has no more use for this object.
        """
        lost = []
        for sequence in (*self._running, *self._waiting):
            if sequence.began >= 0:
                sequence.job.delivered += self._step - sequence.began + 1
            lost.append(sequence.job)
        return lost

    # Scheduling

    def _schedule(self) -> int:
        """Chooses the prompt tokens of the next step; returns how many."""
        budget = self.shape.budget - self._decoding
        before = budget
        for sequence in tuple(self._prefilling):
            if budget <= 0:
                break
            budget -= self._advance(sequence, budget)
        while budget > 0 and self._waiting and len(self._running) < self.shape.max_running:
            sequence = self._waiting[0]
            if not self._admit(sequence):
                break
            self._waiting.popleft()
            budget -= self._advance(sequence, budget)
        self.totals.most_running = max(self.totals.most_running, len(self._running))
        return before - budget

    def _advance(self, sequence: _Sequence, budget: int) -> int:
        tokens = min(budget, sequence.prompt - sequence.done)
        sequence.done += tokens
        self.queued -= tokens
        self.context += tokens
        if sequence.done == sequence.prompt:
            self._prefilling.pop(sequence, None)
            self._complete.append(sequence)
        return tokens

    def _admit(self, sequence: _Sequence) -> bool:
        """Gives a waiting sequence its memory, when there is enough."""
        block = self.shape.block
        # One token at least must be computed: the answer begins with it.
        usable = sequence.blocks[: (sequence.prompt - 1) // block]
        held = self._cache.held(usable)
        cached = held * block
        needed = sequence.prompt - cached
        if self._room() - self._decoding < needed + self._cache.unused_among(usable[:held]) * block:
            return False
        self._cache.use(usable[:held])
        sequence.held, sequence.cached, sequence.done = held, cached, cached
        sequence.job.cached = cached
        self._private += needed
        self.context += cached
        self.queued -= cached
        self.totals.cached += cached
        self._running[sequence] = self._prefilling[sequence] = None
        self._make_room()
        return True

    def _publish(self, sequence: _Sequence) -> None:
        """A prompt has been computed: others may use its blocks."""
        fresh = sequence.blocks[sequence.held :]
        if not fresh:
            return
        new = self._cache.use(fresh)
        # Those that another sequence has published meanwhile are held once.
        self._private -= len(fresh) * self.shape.block
        sequence.held = len(sequence.blocks)
        self._changes.stored += new
        self._make_room()

    def _drop(self, sequence: _Sequence) -> None:
        """A sequence leaves, and its memory with it."""
        del self._running[sequence]
        self._prefilling.pop(sequence, None)
        self._cache.leave(sequence.blocks[: sequence.held])
        computed = sequence.done + max(0, self._step - sequence.began if sequence.began >= 0 else 0)
        allocated = max(computed, sequence.prompt)
        self.context -= computed
        self._private -= allocated - sequence.held * self.shape.block
        self._make_room()

    def _preempt(self) -> None:
        """The sequence that was admitted last makes room: it is computed once more, later."""
        sequence = next(reversed(self._running))
        self._drop(sequence)
        self.totals.preempted += 1
        produced = 0
        if sequence.began >= 0:
            produced = self._step - sequence.began + 1
            bucket = self._finishing[sequence.began + sequence.left - 1]
            del bucket[sequence]
            self._decoding -= 1
            sequence.job.delivered += produced
        else:
            self.queued -= sequence.prompt - sequence.done
        again = _Sequence(
            sequence.job,
            sequence.prompt + produced,
            sequence.left - produced,
            blocks=sequence.blocks,
        )
        self.queued += again.prompt
        self._waiting.appendleft(again)

    # Memory

    def _room(self) -> int:
        """Tokens that may still be allocated: unused cached blocks are as good as free."""
        return self.shape.kv_tokens - self.kv_used

    def _make_room(self) -> None:
        free = self.shape.kv_tokens - self.kv_used
        if self._cache.unused * self.shape.block > free:
            self._changes.removed += self._cache.keep_at_most(free // self.shape.block)
