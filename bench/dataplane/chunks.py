"""What the fake engine says in the real contract: ready-made chunks, and answers that put them.

Serialised once, so that a token costs the engine next to nothing. Times are `Steps`' matter.
"""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from bench.dataplane.steps import LONGEST
from services.chassis.model_handler import Outlet

CHUNKS = tuple(
    pb.GenerateChunk(first_token=at, text=" river", token_ids=[1000 + at]).SerializeToString()
    for at in range(LONGEST)
)


def first_chunk(request_id: str) -> bytes:
    """The first token, which carries the request's id."""
    return pb.GenerateChunk(
        text=" river", token_ids=[1000], request_id=request_id
    ).SerializeToString()


def last_chunk(tokens: int, reason: pb.FinishReason) -> bytes:
    """The last token, with the usage."""
    return pb.GenerateChunk(
        first_token=max(tokens - 1, 0),
        text=" sea",
        token_ids=[999],
        finish_reason=reason,
        usage=pb.Usage(prompt_tokens=16, completion_tokens=tokens, source=pb.Usage.SOURCE_PROVIDER),
    ).SerializeToString()


class Answer:
    """One running answer: `Running` of the steps, into an outlet."""

    __slots__ = ("_at", "_outlet", "_request_id", "_tokens")

    def __init__(self, outlet: Outlet, request_id: str, tokens: int) -> None:
        self._outlet = outlet
        self._request_id = request_id
        self._tokens = tokens
        self._at = 0

    def step(self) -> bool:
        at = self._at
        self._at = at + 1
        if at + 1 >= self._tokens:
            self._end(pb.FINISH_REASON_LENGTH)
            return True
        raw = CHUNKS[at] if at else first_chunk(self._request_id)
        self._outlet.chunk(raw, last=False, tokens=1)
        return False

    def cut(self) -> None:
        self._end(pb.FINISH_REASON_CANCELLED)

    def _end(self, reason: pb.FinishReason) -> None:
        self._outlet.chunk(last_chunk(self._at, reason), last=True, tokens=1)
