"""Results as plain values: answers, chunks, usage, receipts, models and backends.

Times are float seconds, money is millionths of a US dollar. How they are read from the
wire's messages is in wire.py; chunks, of which there are many, are views in transcript.py.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from anabranch.planning.values import CloudPrices, StepPace
from anabranch.v1 import generation_pb2
from anabranch.vocabulary import (
    BackendState,
    BreakerState,
    CacheSource,
    Capability,
    FinishReason,
    OverflowReason,
    Role,
    Tier,
    UsageSource,
    Verdict,
)


def as_dict(value: object) -> Any:
    """Makes a result JSON-ready: enums as lower-case names, bytes as base64."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(k): as_dict(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_dict(v) for v in value]
    return value


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. In a chunk, `arguments` is a fragment."""

    index: int
    id: str
    name: str
    arguments: str

    def parsed(self) -> Any:
        """The arguments of a complete call. Raises ValueError when they are no JSON."""
        return json.loads(self.arguments or "{}")


@dataclass(frozen=True)
class TokenLogprob:
    """A candidate token and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


Logprobs = tuple[tuple[TokenLogprob, ...], ...]


@dataclass(frozen=True)
class ReasoningState:
    """Opaque reasoning, to be replayed to the provider that issued it."""

    provider: str
    data: bytes


@dataclass(frozen=True)
class Usage:
    """Tokens that a request used."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    source: UsageSource

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Attempt:
    """One dispatch to a backend; `error_reason` is empty for the one that answered."""

    backend_id: str
    tier: Tier
    error_reason: str
    duration: float


@dataclass(frozen=True)
class ProviderAttempt:
    """One request of the cloud proxy to a provider; `error` is empty for the one that answered.

    `key` numbers the keys of the account's pool. `http_status` is 0 when none came.
    """

    provider: str
    model: str
    key: int
    error: str
    http_status: int
    duration: float
    provider_request_id: str


@dataclass(frozen=True)
class Receipt:
    """How the router handled a request, measured at the router."""

    tier: Tier
    backend_id: str
    served_model: str
    overflow_reason: OverflowReason | None
    predicted_ttft: float | None
    ttft: float | None
    queue_time: float
    attempts: tuple[Attempt, ...]
    cost_microusd: int
    resumed_at_tokens: tuple[int, ...]
    resolved_model: str = ""
    cache: CacheSource | None = None
    masked_entities: int = 0
    hedged: bool = False
    provider_attempts: tuple[ProviderAttempt, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One complete answer among the `n` asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: Logprobs
    finish_reason: FinishReason | None
    matched_stop: str
    reasoning_state: tuple[ReasoningState, ...]


@dataclass(frozen=True)
class Answer:
    """A whole answer. Its short properties speak of the first choice."""

    choices: tuple[Choice, ...]
    usage: Usage | None
    receipt: Receipt | None
    request_id: str

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text if self.choices else ""

    @property
    def reasoning(self) -> str:
        """Reasoning of the first choice."""
        return self.choices[0].reasoning if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the first choice."""
        return self.choices[0].tool_calls if self.choices else ()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first choice ended."""
        return self.choices[0].finish_reason if self.choices else None

    @property
    def message(self) -> generation_pb2.Message:
        """The first choice as an assistant turn, to append to a conversation."""
        turn = generation_pb2.Message(role=Role.ASSISTANT.value)  # type: ignore[arg-type]
        if self.text or not self.tool_calls:
            turn.content.add(text=self.text)
        for call in self.tool_calls:
            turn.tool_calls.add(
                index=call.index, id=call.id, name=call.name, arguments=call.arguments
            )
        for state in self.choices[0].reasoning_state if self.choices else ():
            turn.reasoning_state.add(provider=state.provider, data=state.data)
        return turn

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TokenCount:
    """How long a prompt is, and how long it may be (context_length 0: unknown)."""

    prompt_tokens: int
    context_length: int
    source: UsageSource


@dataclass(frozen=True)
class Embeddings:
    """One vector for each input, in order."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage | None


@dataclass(frozen=True)
class Model:
    """A model that can be asked for."""

    name: str
    context_length: int
    tiers: tuple[Tier, ...]
    aliases: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    backends: int
    provider: str
    served_model: str
    prices: CloudPrices | None = None
    """What the provider charges; None for a local model, or where it is unknown."""


@dataclass(frozen=True)
class Load:
    """How busy a backend says it is. `step_pace` is None before an engine has learnt its pace."""

    running: int
    waiting: int
    max_running: int
    kv_used_tokens: int
    kv_total_tokens: int
    output_tokens_per_second: float
    step_time_ratio: float
    draining: bool
    step_pace: StepPace | None = None


@dataclass(frozen=True)
class Backend:
    """A backend as the router sees it; `load_age` in seconds."""

    backend_id: str
    address: str
    tier: Tier
    state: BackendState
    models: tuple[str, ...]
    in_flight: int
    drained: bool
    version: str
    zone: str
    detail: str
    load: Load | None
    load_age: float | None
    breaker: BreakerState = BreakerState.UNSPECIFIED
    warmth: float = 1.0
    prefix_blocks: int = 0


@dataclass(frozen=True)
class Candidate:
    """A backend considered for a request; a lower score is better.

    `cached_tokens` of the prompt are thought to be in its prefix cache; the cost is 0 for local.
    """

    backend_id: str
    tier: Tier
    feasible: bool
    objection: str
    score: float
    predicted_ttft: float | None
    predicted_tpot: float | None
    cached_tokens: int = 0
    expected_cost_microusd: int = 0


@dataclass(frozen=True)
class Explanation:
    """What the router would do with a request now. Objectives are in seconds, None without a limit;
    `overflowing`: the model's overflow valve is open; `waiting`: requests in line."""

    verdict: Verdict
    backend_id: str
    overflow_reason: OverflowReason | None
    refusal_reason: str
    explanation: str
    candidates: tuple[Candidate, ...]
    resolved_model: str = ""
    policy_version: str = ""
    algorithm: str = ""
    ttft_objective: float | None = None
    tpot_objective: float | None = None
    prompt_tokens: int = 0
    overflowing: bool = False
    waiting: int = 0


@dataclass(frozen=True)
class RoutingPolicy:
    """The policy by which a router decides, as its document.

    `source` is default, file, consul or admin. `rejected` says why a newer document from there
    is not in force, line by line; it is empty when there is none.
    """

    text: str
    version: str
    source: str
    rejected: tuple[str, ...]
