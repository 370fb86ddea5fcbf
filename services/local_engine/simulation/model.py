"""A language model server without a model: which tokens, in which step, after how long. Pure.

Tokens are a function of prompt, choice, seed and position, so that an answer resumed elsewhere
can be checked token by token. Scheduling follows vLLM: continuous batching, chunked prefill
within a token budget, decodes first, a KV budget with preemption of the latest, prefix reuse by
blocks. Time is only computed, never spent: the engine around it does the waiting.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.local_engine.prefix_events import ROOT, chain_keys
from services.local_engine.simulation.tokenizer import EOS, FIRST_WORD, LABEL, WORDS
from services.local_engine.step_model import StepModel

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def answer_seed(prompt: Sequence[int], choice: int = 0, sampling_seed: int = 0) -> int:
    """What all tokens of one answer follow from."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).digest()
    return _mix(int.from_bytes(digest, "big") + choice * _GOLDEN + (sampling_seed << 1))


def token_at(seed: int, position: int) -> int:
    """The token at a position of the answer; the first one labels it as simulated."""
    if position == 0:
        return LABEL
    return FIRST_WORD + _mix(seed + position * _GOLDEN) % WORDS


def natural_length(seed: int, mean: int) -> int:
    """After how many tokens the answer ends by itself, the final EOS excluded; 1 to 2·mean."""
    return 1 + _mix(seed ^ _GOLDEN) % (2 * mean)


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class SimLimits:
    """What the simulated hardware holds; tokens, and tokens a step."""

    max_running: int = 256
    prefill_budget: int = 2048
    kv_tokens: int = 131_072
    block: int = 16


@dataclass(slots=True, eq=False)
class Stream:
    """One choice of one job on its way. `key` is the caller's: the job and the choice."""

    key: tuple[str, int]
    prompt: Sequence[int]
    seed: int
    produced: int
    """Tokens of the answer that exist, a continuation included."""
    length_limit: int
    """Length of the answer at which it is cut."""
    eos_at: int | None
    """Length of the answer after which EOS follows; None for never."""
    prefilled: int = 0
    cached: int = 0
    """Tokens of the prompt that were in the cache when it first ran."""
    preempted: bool = False
    to_prefill: int = field(init=False)

    def __post_init__(self) -> None:
        self.to_prefill = len(self.prompt) + self.produced

    @property
    def context(self) -> int:
        """Tokens of KV cache that it holds."""
        done = self.prefilled - self.to_prefill
        return self.prefilled if done < 0 else len(self.prompt) + self.produced

    @property
    def claim(self) -> int:
        """Tokens of KV cache that it holds once its next token is out."""
        return len(self.prompt) + self.produced + 1

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been read."""
        return self.prefilled >= self.to_prefill


@dataclass(slots=True)
class Step:
    """What one step does: its modelled duration in seconds and the tokens that come out."""

    seconds: float
    prefill_tokens: int
    decodes: int
    context_tokens: int
    """Held by all sequences when it began."""
    tokens: list[tuple[Stream, int]]


class CacheListener(Protocol):
    """Hears of every block that the prefix cache gains or loses; its parent comes before it."""

    def store(self, key: int, parent: int) -> None: ...

    def remove(self, key: int) -> None: ...


class PrefixBlocks:
    """Which prompt prefixes are in the cache, by whole blocks; the least used leave first.

    Of one prompt the last block leaves first, as in vLLM: without its beginning it is worthless.
    """

    def __init__(self, block: int, capacity: int, listener: CacheListener | None = None) -> None:
        self._block = block
        self._capacity = capacity
        self._listener = listener
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def match(self, prompt: Sequence[int]) -> int:
        """Tokens of the prompt that need not be computed; the last one's block always is."""
        most = max(0, len(prompt) - 1) // self._block
        matched = []
        for key, _ in zip(chain_keys(prompt, self._block), range(most), strict=False):
            if key not in self._blocks:
                break
            matched.append(key)
        self._use(matched)
        return len(matched) * self._block

    def add(self, prompt: Sequence[int]) -> None:
        """The prompt has been computed."""
        keys = list(chain_keys(prompt, self._block))
        parent = ROOT
        for key in keys:
            if key not in self._blocks:
                self._blocks[key] = None
                if self._listener is not None:
                    self._listener.store(key, parent)
            parent = key
        self._use(keys)
        while len(self._blocks) > self._capacity:
            key, _ = self._blocks.popitem(last=False)
            if self._listener is not None:
                self._listener.remove(key)

    def _use(self, keys: Sequence[int]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)


class SimModel:
    """The scheduler: sequences in, steps out."""

    def __init__(
        self, limits: SimLimits, pace: StepModel, listener: CacheListener | None = None
    ) -> None:
        self.limits = limits
        self._pace = pace
        self._waiting: deque[Stream] = deque()
        self._running: list[Stream] = []
        self._prefixes = PrefixBlocks(limits.block, limits.kv_tokens // limits.block, listener)

    @property
    def running(self) -> int:
        """Sequences being prefilled or decoded."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    @property
    def kv_used(self) -> int:
        """Tokens of KV cache that running sequences hold."""
        return sum(sequence.context for sequence in self._running)

    @property
    def _claimed(self) -> int:
        return sum(sequence.claim for sequence in self._running)

    def add(self, sequence: Stream) -> None:
        """Queues a sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Stream) -> None:
        """Forgets a sequence wherever it is."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def step(self) -> Step:
        """Plans and performs the next step. Sequences that end with it are forgotten."""
        decodes = [sequence for sequence in self._running if sequence.decoding]
        self._make_room(decodes)
        context = self.kv_used
        budget = max(1, self.limits.prefill_budget - len(decodes))
        prefilled, first = self._prefill(budget)
        ready = decodes + first
        tokens = [(sequence, self._next_token(sequence)) for sequence in ready]
        for sequence, token in tokens:
            if token == EOS or sequence.produced >= sequence.length_limit:
                self._running.remove(sequence)
        seconds = self._pace.seconds(prefilled, len(decodes), context)
        return Step(seconds, prefilled, len(decodes), context, tokens)

    def _next_token(self, sequence: Stream) -> int:
        position = sequence.produced
        sequence.produced += 1
        if sequence.eos_at is not None and position >= sequence.eos_at:
            return EOS
        return token_at(sequence.seed, position)

    def _prefill(self, budget: int) -> tuple[int, list[Stream]]:
        spent = 0
        first: list[Stream] = []
        claimed = self._claimed
        for sequence in self._running:
            if not sequence.decoding and spent < budget:
                spent += self._chunk(sequence, budget - spent, first)
        while self._waiting and spent < budget and len(self._running) < self.limits.max_running:
            sequence = self._waiting[0]
            claimed += sequence.claim
            # A lone sequence is always let in, however large: it could never start otherwise.
            if self._running and claimed > self.limits.kv_tokens:
                break
            self._running.append(self._waiting.popleft())
            sequence.prefilled = self._prefixes.match(sequence.prompt)
            if not sequence.preempted:
                sequence.cached = sequence.prefilled
            spent += self._chunk(sequence, budget - spent, first)
        return spent, first

    def _chunk(self, sequence: Stream, budget: int, first: list[Stream]) -> int:
        chunk = min(budget, sequence.to_prefill - sequence.prefilled)
        sequence.prefilled += chunk
        if sequence.decoding:
            self._prefixes.add(sequence.prompt)
            first.append(sequence)
        return chunk

    def _make_room(self, decodes: list[Stream]) -> None:
        """Sends the latest sequences back to the queue while the next tokens would not fit."""
        while len(self._running) > 1 and self._claimed > self.limits.kv_tokens:
            victim = self._running.pop()
            if victim in decodes:
                decodes.remove(victim)
            victim.to_prefill = len(victim.prompt) + victim.produced
            victim.prefilled = 0
            victim.preempted = True
            self._waiting.appendleft(victim)
