"""Reads a GenerateRequest as the decision sees it. Pure."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.router.core import values
from services.router.core.values import Residency, Resume

_RESIDENCIES: dict[int, Residency] = {
    pb.RESIDENCY_UNSPECIFIED: Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_FIRST: Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_ONLY: Residency.LOCAL_ONLY,
    pb.RESIDENCY_CLOUD_FIRST: Residency.CLOUD_FIRST,
    pb.RESIDENCY_CLOUD_ONLY: Residency.CLOUD_ONLY,
}
_SHORT = 4096
_NONE: frozenset[str] = frozenset()


def route_request(
    request: pb.GenerateRequest,
    *,
    elapsed: float = 0.0,
    resume: Resume = Resume.FRESH,
    tried: frozenset[str] = _NONE,
) -> values.Request:
    """The request as values; `elapsed` seconds of its TTFT limit are gone.

    A resumed answer has had its first token: no such limit applies any more.
    """
    tokens = estimated_prompt_tokens(request)
    if not request.HasField("routing"):
        return values.Request(request.model, tokens, Residency.LOCAL_FIRST, None, "", resume, tried)
    routing = request.routing
    slo = None
    if routing.HasField("ttft_slo") and resume is Resume.FRESH:
        slo = max(routing.ttft_slo.ToNanoseconds() / 1e9 - elapsed, 0.001)
    residency = _RESIDENCIES[routing.residency]
    return values.Request(request.model, tokens, residency, slo, routing.backend_id, resume, tried)


def estimated_prompt_tokens(request: pb.GenerateRequest) -> int:
    """A guess at the prompt's length, for load prediction only: four bytes a token.

    A short request counts as it is on the wire, without a walk through its messages.
    """
    known = len(request.prompt_token_ids)
    if request.HasField("continuation"):
        known += len(request.continuation.token_ids)
    size = request.ByteSize()
    if size > _SHORT or known:
        # Its bulk may be images, tools or token ids.
        size = len(request.prompt)
        for message in request.messages:
            size += 8 + sum([len(part.text) for part in message.content])
    return known + size // 4 + 1
