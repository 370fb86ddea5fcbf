"""What the service asks of an engine: the `Engine` protocol and the values that cross it.

An engine pushes: what one of its steps produced, for however many jobs, is handed to their
callbacks in one turn of the event loop, so that it leaves in one message. Nothing here knows
vLLM, and of the wire only the request that `encode` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixLog
from services.local_engine.heartbeat import Heartbeat
from services.local_engine.step_model import StepModel


class Finish(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class ConstraintKind(Enum):
    """How the form of an answer is given."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have. `text` is empty for JSON_OBJECT, `options` but for CHOICE.

    The text is a JSON schema, a regular expression or an EBNF grammar, as the kind says.
    """

    kind: ConstraintKind
    text: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to sample. None means the model's own default.

    `max_tokens` counts new tokens only; `min_tokens` counts those of a continuation as well,
    because it is a property of the whole answer.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Continuation:
    """Output that exists already; `text` may lag behind the text of `token_ids`."""

    token_ids: tuple[int, ...] = ()
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.text)


@dataclass(frozen=True, slots=True)
class Job:
    """One request as an engine takes it. The id is unique in the process.

    `max_tokens` is the resolved bound on new tokens, within the context. A lower `priority`
    goes first. `block_names` are those of the prompt's text of `text_bytes`, for an engine that
    tells what its prefix cache holds; see chassis/prompt_blocks.py.
    """

    id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingSpec
    max_tokens: int
    continuation: Continuation = field(default_factory=Continuation)
    priority: int = 0
    block_names: tuple[int, ...] = ()
    text_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate token; `logprob` is the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens used by a whole job; `completion` includes a continuation, over all choices.

    `queued` and `prefill` are the seconds until it was first computed and from then until its
    first token, where the engine tells; they do not count when two are compared.
    """

    prompt: int
    cached_prompt: int
    completion: int
    partial: bool = False
    queued: float | None = field(default=None, compare=False)
    prefill: float | None = field(default=None, compare=False)


@dataclass(slots=True)
class Delta:
    """News of one choice. `usage` is set on the last delta of the job, and only there.

    `first_token` is the position in the choice's output of the first of `token_ids`. For each
    token that logprobs were asked for, `logprobs` holds the sampled token, then alternatives.
    """

    index: int
    first_token: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Sequence[Candidate]] = ()
    finish: Finish | None = None
    matched_stop: str = ""
    usage: TokenUsage | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the loaded model. `source` is the engine's own name of it.

    `token_bytes` is how many bytes of text one token can stand for at most; 0: not known.
    """

    name: str
    source: str
    context_length: int
    max_running: int
    capabilities: tuple[pb.Capability, ...]
    token_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is; field meanings and units as in LoadReport, times in seconds."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    step_time_ratio: float = 1.0
    prefill_tokens_per_step: float = 0.0
    output_tokens_per_second: float = 0.0
    max_running: int = 0
    step_time: float = 0.0
    prefill_budget: int = 0
    step_model: StepModel | None = None


OnDelta = Callable[[Delta], None]
OnFail = Callable[[Fault], None]


class Engine(Protocol):
    """Runs jobs. Used on one event loop; callbacks come on it and must not block."""

    @property
    def facts(self) -> ModelFacts:
        """The loaded model. Raises Fault MODEL_LOADING before `start` has returned."""

    @property
    def prefixes(self) -> PrefixLog | None:
        """What its prefix cache holds, once loaded; None from an engine that does not tell."""

    @property
    def heartbeat(self) -> Heartbeat:
        """When it last ended a step, or should have begun to."""

    async def start(self) -> None:
        """Loads the model; returns once jobs can run. Raises EngineStartError."""

    async def close(self) -> None:
        """Ends everything, running jobs included. Idempotent."""

    async def lost(self) -> str:
        """Waits until the engine can no longer work, and says why. It does not recover."""

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's token ids, chat template applied.

        Raises Fault INVALID_REQUEST for ids outside the vocabulary or a conversation that the
        template refuses, UNSUPPORTED for parts that the model cannot read.
        """

    async def encode_text(self, text: str) -> list[int]:
        """The token ids of plain text, without any special tokens added."""

    async def check_form(self, constraint: Constraint, tenant: str) -> None:
        """Returns once it is sure that the form can be compiled, and in time.

        Forms are judged a few at once, tenants by turns. Raises Fault INVALID_REQUEST naming the
        field and the cause, OVERLOADED when too many wait, UNSUPPORTED without grammars.
        """

    def submit(self, job: Job, on_delta: OnDelta, on_fail: OnFail) -> None:
        """Starts a job and returns at once. It ends with a delta that has usage, or a failure."""

    def abort(self, job_id: str) -> None:
        """Ends a job early: its open choices finish CANCELLED before this returns.

        The engine itself forgets it within 500 ms. An unknown or ended job is no error.
        """

    def give_up(self, why: str) -> None:
        """Fails every job with BACKEND_LOST, and each later one; the engine itself is not asked.

        For one that no longer answers, before its process ends.
        """

    def load(self) -> EngineLoad:
        """The load now."""


class EngineStartError(Exception):
    """The engine could not be started; the text says why, and what to do where that is known."""
