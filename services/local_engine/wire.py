"""Maps the wire's messages to the engine's values and back. Pure; no engine is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.local_engine.engine import (
    Constraint,
    ConstraintKind,
    Continuation,
    Delta,
    EngineLoad,
    Finish,
    ModelFacts,
    SamplingSpec,
)

_FINISH: Mapping[Finish, pb.FinishReason] = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
_ROLES: Mapping[int, str] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_PRIORITIES: Mapping[int, int] = {pb.PRIORITY_SYSTEM: -1, pb.PRIORITY_BATCH: 1}
_SCALARS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "logprobs",
)


def unsupported(feature: str, message: str) -> Fault:
    """UNSUPPORTED, naming the feature."""
    return Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, message, metadata={"feature": feature})


def sampling_of(request: pb.GenerateRequest) -> SamplingSpec:
    """How the request wants to be sampled. Raises Fault UNSUPPORTED for tools."""
    if request.tools:
        raise unsupported("tools", "this model is not asked to call tools")
    given = request.sampling
    scalars = {n: getattr(given, n) for n in _SCALARS if given.HasField(n)}
    return SamplingSpec(
        **scalars,
        stop=tuple(given.stop),
        n=given.n or 1,
        ignore_eos=given.ignore_eos,
        min_tokens=given.min_tokens,
        constraint=_constraint_of(request.response_format),
    )


def _constraint_of(wanted: pb.ResponseFormat) -> Constraint | None:
    kind = wanted.WhichOneof("format")
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return Constraint(ConstraintKind.JSON_OBJECT)
    if kind == "choice":
        return Constraint(ConstraintKind.CHOICE, options=tuple(wanted.choice.options))
    return Constraint(ConstraintKind(kind), text=getattr(wanted, kind))


def continuation_of(request: pb.GenerateRequest, spec: SamplingSpec) -> Continuation:
    """What the answer goes on after. Raises Fault UNSUPPORTED where that cannot be done."""
    given = request.continuation
    continuation = Continuation(tuple(given.token_ids), given.text)
    if continuation and spec.n > 1:
        raise unsupported("continuation of n > 1", "only an answer of one choice can be resumed")
    if continuation and spec.constraint is not None:
        raise unsupported(
            "continuation of response_format",
            "an answer of a constrained form cannot be resumed: its grammar's state is gone",
        )
    return continuation


def priority_of(request: pb.GenerateRequest) -> int:
    """The engine's number for the request's class; lower goes first."""
    return _PRIORITIES.get(request.routing.priority, 0)


def chat_turns(
    messages: Sequence[pb.Message], pictures: Iterator[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The conversation as chat templates read it; for a model that reads images `pictures` are
    what takes the place of each, in order. Raises Fault UNSUPPORTED."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.tool_calls or message.role == pb.ROLE_TOOL:
            raise unsupported("tools", "this model is not asked to call tools")
        if any(part.WhichOneof("part") == "image" for part in message.content):
            if pictures is None:
                raise unsupported("images", "this model does not read images")
            parts = [_part(part, pictures) for part in message.content]
            turns.append({"role": _ROLES[message.role], "content": parts})
            continue
        text = "".join(part.text for part in message.content)
        turns.append({"role": _ROLES[message.role], "content": text})
    return turns


def _part(part: pb.ContentPart, pictures: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(pictures) if part.HasField("image") else {"type": "text", "text": part.text}


def check_vocabulary(token_ids: Sequence[int], size: int, field: str) -> None:
    """Raises Fault INVALID_REQUEST when an id is none of the model's."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < size):
        raise invalid([Violation(field, f"holds an id outside the vocabulary of {size} tokens")])


def resolve_max_tokens(
    wanted: int | None, *, prompt_tokens: int, existing_tokens: int, context_length: int
) -> int:
    """New tokens to generate at most. Raises Fault CONTEXT_LENGTH_EXCEEDED."""
    left = context_length - prompt_tokens - existing_tokens
    if left < max(1, wanted or 1):
        raise Fault(
            errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {prompt_tokens + existing_tokens} tokens and "
            f"{wanted or 'at least 1'} more are wanted, "
            f"but the model's context holds {context_length}",
            metadata={
                "prompt_tokens": str(prompt_tokens + existing_tokens),
                "max_tokens": str(wanted or 1),
                "context_length": str(context_length),
            },
        )
    return wanted or left


def chunk_of(delta: Delta, request_id: str) -> pb.GenerateChunk:
    """The wire form of a delta; `request_id` is empty but for the first chunk."""
    chunk = pb.GenerateChunk(
        index=delta.index,
        first_token=delta.first_token,
        text=delta.text,
        token_ids=delta.token_ids,
        request_id=request_id,
    )
    for candidates in delta.logprobs:
        chunk.logprobs.add(
            candidates=[
                pb.TokenLogprob(token_id=c.token_id, text=c.text, logprob=c.logprob)
                for c in candidates
            ]
        )
    if delta.finish is not None:
        chunk.finish_reason = _FINISH[delta.finish]
        chunk.matched_stop = delta.matched_stop
    if delta.usage is not None:
        chunk.usage.prompt_tokens = delta.usage.prompt
        chunk.usage.cached_prompt_tokens = delta.usage.cached_prompt
        chunk.usage.completion_tokens = delta.usage.completion
        chunk.usage.source = (
            pb.Usage.SOURCE_PARTIAL if delta.usage.partial else pb.Usage.SOURCE_PROVIDER
        )
    return chunk


def load_report(load: EngineLoad, *, sequence: int, draining: bool) -> session_pb2.LoadReport:
    """The wire form of a load; `starts_seen` is the session's to fill."""
    report = session_pb2.LoadReport(
        sequence=sequence,
        running=load.running,
        waiting=load.waiting,
        queued_prefill_tokens=load.queued_prefill_tokens,
        context_tokens=load.context_tokens,
        kv_used_tokens=load.kv_used_tokens,
        kv_total_tokens=load.kv_total_tokens,
        step_time_ratio=load.step_time_ratio,
        prefill_tokens_per_step=load.prefill_tokens_per_step,
        output_tokens_per_second=load.output_tokens_per_second,
        draining=draining,
        max_running=load.max_running,
        prefill_budget=load.prefill_budget,
    )
    report.step_time.FromNanoseconds(int(load.step_time * 1e9))
    model = load.step_model
    if model is not None:
        report.step_model.base = model.base * 1e6
        report.step_model.prefill = model.prefill * 1e6
        report.step_model.decode = model.decode * 1e6
        report.step_model.context = model.context * 1e6
    return report


def model_info(facts: ModelFacts, aliases: Sequence[str]) -> pb.ModelInfo:
    """The wire form of the loaded model."""
    return pb.ModelInfo(
        name=facts.name,
        context_length=facts.context_length,
        tiers=[pb.TIER_LOCAL],
        aliases=aliases,
        capabilities=facts.capabilities,
        served_model=facts.source,
    )
