"""Reads the wire's messages into the plain values of types.py, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from anabranch.planning.values import CloudPrices, StepPace
from anabranch.types import (
    Attempt,
    Backend,
    Candidate,
    Embeddings,
    Explanation,
    Load,
    Logprobs,
    Model,
    ProviderAttempt,
    Receipt,
    RoutingPolicy,
    TokenCount,
    TokenLogprob,
    ToolCall,
    Usage,
)
from anabranch.v1 import admin_pb2, generation_pb2, model_pb2, session_pb2
from anabranch.vocabulary import (
    BackendState,
    BreakerState,
    CacheSource,
    Capability,
    OverflowReason,
    Tier,
    UsageSource,
    Verdict,
)


def seconds(duration: Duration) -> float:
    """A protobuf Duration as seconds."""
    return duration.seconds + duration.nanos / 1e9


def tool_call(proto: generation_pb2.ToolCall) -> ToolCall:
    """Reads a ToolCall."""
    return ToolCall(proto.index, proto.id, proto.name, proto.arguments)


def logprobs(protos: Sequence[generation_pb2.TokenLogprobs]) -> Logprobs:
    """Reads log-probabilities, one tuple of candidates for each position."""
    return tuple(
        tuple(TokenLogprob(c.token_id, c.text, c.logprob) for c in position.candidates)
        for position in protos
    )


def usage(proto: generation_pb2.Usage) -> Usage:
    """Reads a Usage."""
    return Usage(
        proto.prompt_tokens,
        proto.cached_prompt_tokens,
        proto.completion_tokens,
        proto.reasoning_tokens,
        UsageSource(proto.source),
    )


def receipt(proto: generation_pb2.RouteReceipt) -> Receipt:
    """Reads a RouteReceipt."""
    return Receipt(
        tier=Tier(proto.tier),
        backend_id=proto.backend_id,
        served_model=proto.served_model,
        overflow_reason=OverflowReason(proto.overflow_reason) if proto.overflow_reason else None,
        predicted_ttft=_present(proto, "predicted_ttft"),
        ttft=_present(proto, "ttft"),
        queue_time=seconds(proto.queue_time),
        attempts=tuple(
            Attempt(a.backend_id, Tier(a.tier), a.error_reason, seconds(a.duration))
            for a in proto.attempts
        ),
        cost_microusd=proto.cost_microusd,
        resumed_at_tokens=tuple(proto.resumed_at_tokens),
        resolved_model=proto.resolved_model,
        cache=CacheSource(proto.cache) if proto.cache else None,
        masked_entities=proto.masked_entities,
        hedged=proto.hedged,
        provider_attempts=tuple(
            ProviderAttempt(
                a.provider,
                a.model,
                a.key,
                a.error,
                a.http_status,
                seconds(a.duration),
                a.provider_request_id,
            )
            for a in proto.provider_attempts
        ),
    )


def model(proto: generation_pb2.ModelInfo) -> Model:
    """Reads a ModelInfo."""
    return Model(
        name=proto.name,
        context_length=proto.context_length,
        tiers=tuple(Tier(t) for t in proto.tiers),
        aliases=tuple(proto.aliases),
        capabilities=tuple(Capability(c) for c in proto.capabilities),
        backends=proto.backends,
        provider=proto.provider,
        served_model=proto.served_model,
        prices=_prices(proto.prices) if proto.HasField("prices") else None,
    )


def _prices(proto: generation_pb2.TokenPrices) -> CloudPrices:
    return CloudPrices(
        prompt=proto.input / 1e6,
        output=proto.output / 1e6,
        cached_prompt=proto.cached_input / 1e6 if proto.cached_input else None,
    )


def token_count(proto: model_pb2.CountTokensResponse) -> TokenCount:
    """Reads a CountTokensResponse."""
    return TokenCount(proto.prompt_tokens, proto.context_length, UsageSource(proto.source))


def embeddings(proto: model_pb2.EmbedResponse) -> Embeddings:
    """Reads an EmbedResponse."""
    return Embeddings(
        vectors=tuple(tuple(e.values) for e in proto.embeddings),
        usage=usage(proto.usage) if proto.HasField("usage") else None,
    )


def load(proto: session_pb2.LoadReport) -> Load:
    """Reads what people look at in a LoadReport."""
    plain = [f.name for f in dataclasses.fields(Load) if f.name != "step_pace"]
    pace = proto.step_model
    return Load(
        **{name: getattr(proto, name) for name in plain},
        step_pace=StepPace(pace.base, pace.prefill, pace.decode, pace.context)
        if proto.HasField("step_model")
        else None,
    )


def backend(proto: admin_pb2.BackendStatus) -> Backend:
    """Reads a BackendStatus."""
    return Backend(
        backend_id=proto.backend_id,
        address=proto.address,
        tier=Tier(proto.tier),
        state=BackendState(proto.state),
        models=tuple(proto.models),
        in_flight=proto.in_flight,
        drained=proto.drained,
        version=proto.version,
        zone=proto.zone,
        detail=proto.detail,
        load=load(proto.load) if proto.HasField("load") else None,
        load_age=_present(proto, "load_age"),
        breaker=BreakerState(proto.breaker),
        warmth=proto.warmth,
        prefix_blocks=proto.prefix_blocks,
    )


def explanation(proto: admin_pb2.ExplainRouteResponse) -> Explanation:
    """Reads an ExplainRouteResponse."""
    return Explanation(
        verdict=Verdict(proto.verdict),
        backend_id=proto.backend_id,
        overflow_reason=OverflowReason(proto.overflow_reason) if proto.overflow_reason else None,
        refusal_reason=proto.refusal_reason,
        explanation=proto.explanation,
        candidates=tuple(
            Candidate(
                c.backend_id,
                Tier(c.tier),
                c.feasible,
                c.objection,
                c.score,
                _present(c, "predicted_ttft"),
                _present(c, "predicted_tpot"),
                c.cached_tokens,
                c.expected_cost_microusd,
            )
            for c in proto.candidates
        ),
        resolved_model=proto.resolved_model,
        policy_version=proto.policy_version,
        algorithm=proto.algorithm,
        ttft_objective=_present(proto, "ttft_objective"),
        tpot_objective=_present(proto, "tpot_objective"),
        prompt_tokens=proto.prompt_tokens,
        overflowing=proto.overflowing,
        waiting=proto.waiting,
    )


def routing_policy(proto: admin_pb2.GetPolicyResponse) -> RoutingPolicy:
    """Reads a GetPolicyResponse."""
    return RoutingPolicy(proto.policy_yaml, proto.version, proto.source, tuple(proto.rejected))


def _present(proto: Any, field: str) -> float | None:
    return seconds(getattr(proto, field)) if proto.HasField(field) else None
