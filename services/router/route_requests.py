"""Reads a GenerateRequest as the decision sees it. Pure."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.router.core import values
from services.router.core.values import Resume

_RESIDENCIES = {
    pb.RESIDENCY_UNSPECIFIED: values.Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_FIRST: values.Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_ONLY: values.Residency.LOCAL_ONLY,
    pb.RESIDENCY_CLOUD_FIRST: values.Residency.CLOUD_FIRST,
    pb.RESIDENCY_CLOUD_ONLY: values.Residency.CLOUD_ONLY,
}


def route_request(
    request: pb.GenerateRequest,
    *,
    elapsed: float = 0.0,
    resume: Resume = Resume.FRESH,
    tried: frozenset[str] = frozenset(),
) -> values.Request:
    """The request as values; `elapsed` seconds of its TTFT limit are gone.

    A resumed answer has had its first token: no such limit applies any more.
    """
    routing = request.routing
    slo = None
    if routing.HasField("ttft_slo") and resume is Resume.FRESH:
        slo = max(routing.ttft_slo.ToNanoseconds() / 1e9 - elapsed, 0.001)
    return values.Request(
        model=request.model,
        prompt_tokens=estimated_prompt_tokens(request),
        residency=_RESIDENCIES[routing.residency],
        ttft_slo=slo,
        backend_id=routing.backend_id,
        resume=resume,
        tried=tried,
    )


def estimated_prompt_tokens(request: pb.GenerateRequest) -> int:
    """A guess at the prompt's length, for load prediction only: four bytes a token."""
    known = len(request.prompt_token_ids) + len(request.continuation.token_ids)
    size = len(request.prompt)
    for message in request.messages:
        size += 8 + sum(len(part.text) for part in message.content)
    return known + size // 4 + 1
