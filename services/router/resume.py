"""What was already delivered of an answer, and the request that goes on after it. Pure.

The router keeps a live request's chunks undecoded; only here, after a backend
was lost, are they read.
"""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.v1 import generation_pb2 as pb
from services.router.core.values import Resume


def can_resume(request: pb.GenerateRequest) -> bool:
    """Whether an interrupted answer can be gone on with at all.

    Several choices, tool calls, constrained formats and log-probabilities carry
    state that a continuation does not hold.
    """
    sampling = request.sampling
    return (
        (not sampling.HasField("n") or sampling.n == 1)
        and not sampling.HasField("logprobs")
        and not request.tools
        and request.response_format.WhichOneof("format") in (None, "text")
    )


class Delivered:
    """The chunks that a caller has got, joined."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.token_ids: list[int] = []
        self.complete = True
        texts: list[str] = []
        for raw in chunks:
            chunk = pb.GenerateChunk.FromString(raw)
            texts.append(chunk.text)
            self.token_ids.extend(chunk.token_ids)
            # Reasoning is not part of a continuation: it cannot be gone on with.
            if chunk.reasoning or chunk.tool_calls:
                self.complete = False
        self.text = "".join(texts)

    @property
    def kind(self) -> Resume:
        """What the next backend must be able to take."""
        if self.token_ids:
            return Resume.AFTER_TOKENS
        return Resume.AFTER_TEXT if self.text else Resume.FRESH


def continued(request: pb.GenerateRequest, delivered: Delivered) -> pb.GenerateRequest | None:
    """The request for the rest; None when nothing is left to generate."""
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    rest.continuation.token_ids.extend(delivered.token_ids)
    rest.continuation.text += delivered.text
    count = len(delivered.token_ids)
    sampling = rest.sampling
    if sampling.HasField("max_tokens"):
        if sampling.max_tokens <= count:
            return None
        sampling.max_tokens -= count
    return rest
