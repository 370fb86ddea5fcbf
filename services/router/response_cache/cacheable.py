"""Which requests have one answer only, and which answers are worth keeping. Pure."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb

_COMPLETE = frozenset({pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_TOOL_CALLS})


def is_deterministic(request: pb.GenerateRequest) -> bool:
    """Whether asking again would bring the same answer: greedy, one choice, nothing fetched.

    A seed is not enough: it makes sampling repeatable on one backend only. A request that names
    its backend is a question about that backend.
    """
    if not request.HasField("sampling"):
        return False
    sampling = request.sampling
    greedy = (sampling.HasField("temperature") and sampling.temperature == 0) or sampling.top_k == 1
    if not greedy or (sampling.HasField("n") and sampling.n != 1):
        return False
    if request.HasField("routing") and request.routing.backend_id:
        return False
    # What an address leads to may change.
    return not any(
        part.WhichOneof("part") == "image" and part.image.WhichOneof("source") == "uri"
        for message in request.messages
        for part in message.content
    )


def is_keepable(last: pb.GenerateChunk) -> bool:
    """Whether an answer with this last chunk is whole, and what one backend said.

    Greedy decoding goes on elsewhere almost exactly as it would have, which is not exactly.
    """
    return (
        last.finish_reason in _COMPLETE
        and last.usage.source != pb.Usage.SOURCE_PARTIAL
        and not last.receipt.resumed_at_tokens
    )
