"""ExplainRoute: one decision in words and figures, without acting on it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from anabranch.v1 import admin_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import reason_name
from services.router.asking import Asking
from services.router.core import values
from services.router.legs import Routing
from services.router.receipt import OVERFLOWS, TIERS, write_seconds
from services.router.refusals import refused
from services.router.spending import payer_of_tenant

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

_VERDICTS = admin_pb2.ExplainRouteResponse


def explain(
    routing: Routing, request: pb.GenerateRequest, tenant: str
) -> admin_pb2.ExplainRouteResponse:
    """What would be done with a tenant's request now."""
    decisions = routing.decisions
    asking = Asking(request, payer_of_tenant(tenant), decisions, routing.spending)
    asked, terms = asking.values(), asking.terms
    decision = decisions.decide(asked, terms)
    response = admin_pb2.ExplainRouteResponse(
        resolved_model=asking.model,
        policy_version=decisions.policy.version,
        algorithm=terms.algorithm.value,
        prompt_tokens=asked.prompt_tokens,
        overflowing=asked.overflowing,
        waiting=len(routing.line),
    )
    ttft = terms.objective.ttft if asked.ttft_slo is None else asked.ttft_slo
    _write(response.ttft_objective, ttft)
    _write(response.tpot_objective, terms.objective.tpot)
    _write_verdict(response, decision.verdict, request.model)
    for candidate in decision.candidates:
        entry = response.candidates.add(
            backend_id=candidate.backend_id,
            tier=TIERS[candidate.tier],
            feasible=candidate.feasible,
            objection=candidate.objection,
            score=candidate.score,
            cached_tokens=candidate.cached_tokens,
            expected_cost_microusd=candidate.cost,
        )
        _write(entry.predicted_ttft, candidate.predicted_ttft)
        _write(entry.predicted_tpot, candidate.predicted_tpot)
    return response


def _write_verdict(
    response: admin_pb2.ExplainRouteResponse, verdict: values.Verdict, model: str
) -> None:
    if isinstance(verdict, values.Dispatch):
        response.verdict = _VERDICTS.VERDICT_DISPATCH
        response.backend_id = verdict.backend_id
        if verdict.tier is values.Tier.CLOUD:
            why = "costs least of those that are soon enough"
        elif verdict.late:
            why = "is the best there is, though later than the objective"
        else:
            why = "has the lowest score of those that meet the objective"
        response.explanation = f"{verdict.backend_id} ({verdict.tier.value}) {why}"
        if verdict.overflow is not None:
            response.overflow_reason = OVERFLOWS[verdict.overflow]
            response.explanation += f"; the preferred tier is {verdict.overflow.value}"
    elif isinstance(verdict, values.Wait):
        response.verdict = _VERDICTS.VERDICT_WAIT
        response.explanation = f"{verdict.why}; a slot is expected in {verdict.expected:.1f} s"
    else:
        response.verdict = _VERDICTS.VERDICT_REFUSE
        response.refusal_reason = reason_name(refused(verdict, model).reason)
        response.explanation = verdict.why


def _write(target: Duration, seconds: float) -> None:
    """Leaves out what is without a limit."""
    if isfinite(seconds):
        write_seconds(target, seconds)
