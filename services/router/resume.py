"""What was already delivered of an answer, and the request that goes on after it. Pure.

The router keeps a live request's chunks undecoded; only here, after a backend
was lost, are they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from anabranch.v1 import generation_pb2 as pb
from services.router.core.values import Resume


def can_resume(request: pb.GenerateRequest) -> bool:
    """Whether an interrupted answer can be gone on with at all.

    Several choices, tool calls, constrained formats and log-probabilities carry
    state that a continuation does not hold.
    """
    if request.HasField("sampling"):
        sampling = request.sampling
        if sampling.HasField("logprobs") or (sampling.HasField("n") and sampling.n != 1):
            return False
    constrained = request.HasField("response_format") and (
        request.response_format.WhichOneof("format") not in (None, "text")
    )
    return not constrained and not request.tools


class Delivered:
    """The chunks that a caller has got, joined.

    `after` counts the tokens of the request's own continuation; `tokens` those that
    were delivered, as their backends counted them. `complete` is false when the
    chunks hold what a continuation cannot. `by_tokens` is false when part of the
    answer came without token ids: then only its text is whole.
    """

    def __init__(self, chunks: Sequence[bytes], *, after: int = 0, tokens: int = 0) -> None:
        self.token_ids: list[int] = []
        self.complete = True
        self.by_tokens = True
        texts: list[str] = []
        for raw in chunks:
            try:
                chunk = pb.GenerateChunk.FromString(raw)
            except DecodeError:
                self.complete = False
                break
            texts.append(chunk.text)
            if chunk.token_ids and not self.token_ids and chunk.first_token != after:
                self.by_tokens = False
            self.token_ids.extend(chunk.token_ids)
            # Reasoning is not part of a continuation: it cannot be gone on with.
            if chunk.reasoning or chunk.tool_calls:
                self.complete = False
        self.text = "".join(texts)
        self.count = max(len(self.token_ids), tokens)

    @property
    def kind(self) -> Resume:
        """What the next backend must be able to take."""
        if self.token_ids and self.by_tokens:
            return Resume.AFTER_TOKENS
        return Resume.AFTER_TEXT if self.text else Resume.FRESH


class Rest(NamedTuple):
    """What is left of an interrupted request: None when every token was delivered. `kind` is what
    its next backend must be able to take."""

    request: pb.GenerateRequest | None
    kind: Resume


def rest_of(request: pb.GenerateRequest, chunks: Sequence[bytes], tokens: int) -> Rest | None:
    """The rest of a request after the delivered chunks with so many tokens; None when they hold
    what a continuation cannot."""
    existing = len(request.continuation.token_ids)
    delivered = Delivered(chunks, after=existing, tokens=tokens)
    if not delivered.complete:
        return None
    return Rest(continued(request, delivered), delivered.kind)


def continued(request: pb.GenerateRequest, delivered: Delivered) -> pb.GenerateRequest | None:
    """The request for the rest; None when nothing is left to generate."""
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    rest.continuation.text += delivered.text
    if delivered.by_tokens:
        rest.continuation.token_ids.extend(delivered.token_ids)
    else:
        del rest.continuation.token_ids[:]
    sampling = rest.sampling
    if sampling.HasField("max_tokens"):
        if sampling.max_tokens <= delivered.count:
            return None
        sampling.max_tokens -= delivered.count
    return rest


def last_chunk(
    request: pb.GenerateRequest, delivered: int, reason: pb.FinishReason
) -> pb.GenerateChunk:
    """Ends an answer after so many delivered tokens, in the place of a backend."""
    position = len(request.continuation.token_ids) + delivered
    usage = pb.Usage(completion_tokens=position, source=pb.Usage.SOURCE_PARTIAL)
    return pb.GenerateChunk(first_token=position, finish_reason=reason, usage=usage)
