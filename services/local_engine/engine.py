"""What the service asks of an engine: the `Engine` protocol and the values that cross it.

An engine pushes: what one of its steps produced, for however many jobs, is handed to their
callbacks in one turn of the event loop, so that it leaves in one message. Nothing here knows
vLLM, and of the wire only the request that `encode` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixLog
from services.local_engine.heartbeat import Heartbeat
from services.local_engine.images.header import ImageHeader
from services.local_engine.step_model import StepModel


class Finish(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class ConstraintKind(Enum):
    """How the form of an answer is given."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have. `text` is empty for JSON_OBJECT, `options` but for CHOICE.

    The text is a JSON schema, a regular expression, an EBNF grammar or, from the engine itself
    for tool calls, a structural tag in xgrammar's JSON, as the kind says. `origin` is the field
    of the request that it was made of.
    """

    kind: ConstraintKind
    text: str = ""
    options: tuple[str, ...] = ()
    origin: str = "response_format"


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to sample. None means the model's own default.

    `max_tokens` counts new tokens only; `min_tokens` counts those of a continuation as well,
    because it is a property of the whole answer. With `special_tokens` the text keeps them, for
    an AnswerParser to read. `thinking` is None where `constraint` holds from the first token on;
    else it holds once the reasoning has ended, and these are the arguments of the chat template
    by which the model thinks.
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
    special_tokens: bool = False
    thinking: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Continuation:
    """Output that exists already; `text` may lag behind the text of `token_ids`."""

    token_ids: tuple[int, ...] = ()
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.text)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a request: checked, but not decoded. `at` is the field that it is in,
    `digest` names its content."""

    at: str
    data: bytes = field(repr=False)
    header: ImageHeader
    digest: str


@dataclass(frozen=True, slots=True)
class Media:
    """What an engine made of a prompt's images, for itself. `text_tokens` of the prompt come
    before the first of them: only these are the same whatever it shows."""

    content: Any = field(repr=False)
    text_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One request as an engine takes it. The id is unique in the process.

    `max_tokens` is the resolved bound on new tokens, within the context. A lower `priority`
    goes first. `block_names` are those of the prompt's text of `text_bytes`, for an engine that
    tells what its prefix cache holds; see chassis/prompt_blocks.py. `adapter` is the engine's key
    of a LoRA adapter, if any.
    """

    id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingSpec
    max_tokens: int
    continuation: Continuation = field(default_factory=Continuation)
    priority: int = 0
    block_names: tuple[int, ...] = ()
    text_bytes: int = 0
    adapter: str = ""
    media: Media | None = None


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Texts to embed; the id is unique in the process. `dimensions` None: the model's own size."""

    id: str
    texts: Sequence[str]
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each text, in order, of finite numbers; the tokens of all texts together."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate token; `logprob` is the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens used by a whole job; `completion` includes a continuation, over all choices.

    `reasoning` are those of `completion` that an AnswerParser found to be reasoning.
    `queued` and `prefill` are the seconds until it was first computed and from then until its
    first token, where the engine tells; they do not count when two are compared.
    """

    prompt: int
    cached_prompt: int
    completion: int
    partial: bool = False
    reasoning: int = 0
    queued: float | None = field(default=None, compare=False)
    prefill: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Part of call number `index` of a choice; `id` and `name` are set on the call's first only.

    `arguments` is the next piece of the JSON text of the call's arguments.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """News of one choice. `usage` is set on the last delta of the job, and only there.

    `first_token` is the position in the choice's output of the first of `token_ids`. For each
    token that logprobs were asked for, `logprobs` holds the sampled token, then alternatives.
    Engines leave `reasoning` and `tool_calls` empty: an AnswerParser takes them out of the text.
    """

    index: int
    first_token: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Sequence[Candidate]] = ()
    finish: Finish | None = None
    matched_stop: str = ""
    usage: TokenUsage | None = None
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the loaded model. `source` is the engine's own name of it.

    `vector_size` is of a model that embeds, `most_images` of one that reads images: how many a
    request may hold. `token_bytes` is how many bytes of text one token can stand for at most; 0:
    not known.
    """

    name: str
    source: str
    context_length: int
    max_running: int
    capabilities: tuple[pb.Capability, ...]
    vector_size: int = 0
    most_images: int = 0
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


OUT_OF_MEMORY = "out_of_memory"
"""The `cause` in the metadata of a Fault for which one request failed and the engine lives on."""


class AnswerParser(Protocol):
    """Takes reasoning and tool calls out of one request's answers, between engine and wire.

    Only requests that need one have one. Used on the event loop, in the order of its methods.
    """

    async def shape(self, spec: SamplingSpec) -> SamplingSpec:
        """What must be sampled, so that there is something to parse: called once, before `begin`.

        It may add a constraint, which is not compiled yet. Raises Fault INVALID_REQUEST for
        tools that no constraint can be made of, UNSUPPORTED for what does not go together.
        """

    def begin(
        self, spec: SamplingSpec, prompt: Sequence[int], continuation: Continuation
    ) -> Continuation:
        """The prompt's tokens, and the continuation to give to the engine in place of this one.

        Raises Fault UNSUPPORTED where the parser's state after it cannot be known.
        """

    def push(self, delta: Delta) -> Delta:
        """The delta as it leaves; its positions and token ids are those of the engine's.

        Text may be held back, and comes with a later delta, at the latest the choice's last.
        Raises Fault INVALID_REQUEST or UNSUPPORTED for a continuation that cannot be gone on
        with, INTERNAL when the parser fails.
        """


OnDelta = Callable[[Delta], None]
OnFail = Callable[[Fault], None]
OnPlain = Callable[[bytes, int], None]
"""Takes a serialised GenerateChunk, neither first nor last, and how many tokens it holds: at least
one, of the first choice, and nothing but their text beside them."""


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

    async def encode_with_images(
        self, request: pb.GenerateRequest, pictures: Sequence[Picture]
    ) -> tuple[list[int], Media]:
        """The token ids of a conversation with images, each as many tokens as it takes.

        Raises as `encode` does, INVALID_REQUEST also for images that cannot be decoded.
        """

    async def encode_text(self, text: str) -> list[int]:
        """The token ids of plain text, without any special tokens added."""

    def parser_for(self, request: pb.GenerateRequest) -> AnswerParser | None:
        """What takes reasoning and tool calls out of its answers; None where there are none.

        Raises Fault UNSUPPORTED for tools, or a wish about reasoning, that the model is not set
        up for, INVALID_REQUEST for tools without messages. Quick: nothing is parsed here.
        """

    async def embed(self, job: EmbedJob) -> Embeddings:
        """Embeds texts; a caller that is cancelled takes them back from the engine.

        Raises Fault UNSUPPORTED from a model that does not embed or cannot shorten its vectors,
        CONTEXT_LENGTH_EXCEEDED with the index of the first text that is too long, INVALID_REQUEST
        for dimensions that the model does not have, BACKEND_LOST.
        """

    async def check_form(self, constraint: Constraint, tenant: str) -> None:
        """Returns once it is sure that the form can be compiled, and in time.

        Forms are judged a few at once, tenants by turns. Raises Fault INVALID_REQUEST naming the
        field and the cause, OVERLOADED when too many wait, UNSUPPORTED without grammars.
        """

    def submit(
        self, job: Job, on_delta: OnDelta, on_fail: OnFail, on_plain: OnPlain | None = None
    ) -> None:
        """Starts a job and returns at once. It ends with a delta that has usage, or a failure.

        What is between its first delta and its last may come to `on_plain`, where that is given.
        """

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
