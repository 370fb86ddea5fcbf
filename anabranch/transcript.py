"""What has arrived of an answer: chunks, and the whole that they add up to.

Pure: knows nothing of sessions, loops or threads.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from anabranch import wire
from anabranch.errors import AnabranchError, Work, error_for
from anabranch.types import Answer, Choice, Logprobs, ReasoningState, Receipt, ToolCall, Usage
from anabranch.v1 import generation_pb2
from anabranch.vocabulary import FinishReason


class Chunk:
    """Part of an answer, as it arrived: a read-only view of a GenerateChunk (`proto`)."""

    __slots__ = ("proto",)

    def __init__(self, proto: generation_pb2.GenerateChunk) -> None:
        self.proto = proto

    @property
    def index(self) -> int:
        """Which choice, from 0."""
        return self.proto.index

    @property
    def first_token(self) -> int:
        """Position of the first of token_ids in the choice's output."""
        return self.proto.first_token

    @property
    def text(self) -> str:
        """New text."""
        return self.proto.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """New tokens; empty from most providers."""
        return tuple(self.proto.token_ids)

    @property
    def reasoning(self) -> str:
        """New reasoning text."""
        return self.proto.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """New fragments of tool calls."""
        return tuple(wire.tool_call(c) for c in self.proto.tool_calls)

    @property
    def logprobs(self) -> Logprobs:
        """Log-probabilities of token_ids, when asked for."""
        return wire.logprobs(self.proto.logprobs)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the choice ended; None while it goes on."""
        return FinishReason(self.proto.finish_reason) if self.proto.finish_reason else None

    @property
    def matched_stop(self) -> str:
        """The stop string that ended the choice, if one did."""
        return self.proto.matched_stop

    def __repr__(self) -> str:
        end = f", finish_reason={self.finish_reason}" if self.finish_reason else ""
        return f"Chunk(index={self.index}, first_token={self.first_token}, text={self.text!r}{end})"


_FIELDS = generation_pb2.GenerateChunk.DESCRIPTOR.fields_by_name
_TEXT, _TOKENS, _REASONING = (_FIELDS[n].number for n in ("text", "token_ids", "reasoning"))
_FINISH, _STOP = _FIELDS["finish_reason"].number, _FIELDS["matched_stop"].number
_CALLS, _LOGPROBS = _FIELDS["tool_calls"].number, _FIELDS["logprobs"].number
_STATES, _USAGE = _FIELDS["reasoning_state"].number, _FIELDS["usage"].number
_RECEIPT, _REQUEST_ID = _FIELDS["receipt"].number, _FIELDS["request_id"].number

_CODES = {
    "BACKEND_LOST": grpc.StatusCode.UNAVAILABLE,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}


class _Parts:
    """One choice while it arrives."""

    __slots__ = ("calls", "finish", "logprobs", "reasoning", "states", "stop", "text", "tokens")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.tokens: list[int] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, tuple[str, str, list[str]]] = {}
        self.logprobs: list[generation_pb2.TokenLogprobs] = []
        self.states: list[ReasoningState] = []
        self.finish = 0
        self.stop = ""

    def add(self, field: int, value: Any) -> None:
        """Takes one field of a chunk."""
        if field == _TEXT:
            self.text.append(value)
        elif field == _TOKENS:
            self.tokens.extend(value)
        elif field == _REASONING:
            self.reasoning.append(value)
        elif field == _FINISH:
            self.finish = value
        elif field == _STOP:
            self.stop = value
        elif field == _CALLS:
            for call in value:
                _, _, arguments = self.calls.setdefault(call.index, (call.id, call.name, []))
                arguments.append(call.arguments)
        elif field == _LOGPROBS:
            self.logprobs.extend(value)
        elif field == _STATES:
            self.states.extend(ReasoningState(s.provider, s.data) for s in value)

    def choice(self, index: int) -> Choice:
        return Choice(
            index=index,
            text="".join(self.text),
            token_ids=tuple(self.tokens),
            reasoning="".join(self.reasoning),
            tool_calls=tuple(
                ToolCall(number, id_, name, "".join(arguments))
                for number, (id_, name, arguments) in sorted(self.calls.items())
            ),
            logprobs=wire.logprobs(self.logprobs),
            finish_reason=FinishReason(self.finish) if self.finish else None,
            matched_stop=self.stop,
            reasoning_state=tuple(self.states),
        )


class Transcript:
    """An answer in the making. Its short properties speak of the first choice."""

    def __init__(self, request_id: str, choices: int = 1) -> None:
        self.request_id = request_id
        self._expected = choices
        self._parts: dict[int, _Parts] = {}
        self._usage: generation_pb2.Usage | None = None
        self._receipt: generation_pb2.RouteReceipt | None = None

    def add(self, raw: bytes) -> Chunk:
        """Takes the next serialised GenerateChunk. Raises InternalServiceError if it is none."""
        try:
            proto = generation_pb2.GenerateChunk.FromString(raw)
        except DecodeError:
            raise self._broken("INTERNAL", "a chunk arrived garbled") from None
        parts = self._parts.get(proto.index)
        if parts is None:
            parts = self._parts[proto.index] = _Parts()
        # Only the few fields that are set are visited: this is the hot path of every caller.
        for descriptor, value in proto.ListFields():
            field = descriptor.number
            if field == _USAGE:
                self._usage = value
            elif field == _RECEIPT:
                self._receipt = value
            elif field == _REQUEST_ID:
                self.request_id = value
            else:
                parts.add(field, value)
        return Chunk(proto)

    @property
    def text(self) -> str:
        """Text so far."""
        return "".join(self._parts[0].text) if 0 in self._parts else ""

    @property
    def reasoning(self) -> str:
        """Reasoning so far."""
        return "".join(self._parts[0].reasoning) if 0 in self._parts else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None before that."""
        finish = self._parts[0].finish if 0 in self._parts else 0
        return FinishReason(finish) if finish else None

    @property
    def usage(self) -> Usage | None:
        """Tokens used; None before the end."""
        return wire.usage(self._usage) if self._usage is not None else None

    @property
    def receipt(self) -> Receipt | None:
        """How the router handled it; None before the end, and without a router."""
        return wire.receipt(self._receipt) if self._receipt is not None else None

    @property
    def answer(self) -> Answer:
        """Everything so far."""
        return Answer(
            choices=tuple(self._parts[i].choice(i) for i in sorted(self._parts)),
            usage=self.usage,
            receipt=self.receipt,
            request_id=self.request_id,
        )

    def verify(self) -> None:
        """Refuses an ended answer that is not whole, so that none is cut short silently.

        Raises BackendLostError for a choice that failed or never finished, and
        RequestCancelledError for one that somebody else cancelled.
        """
        finishes = {parts.finish for parts in self._parts.values()}
        if len(self._parts) < self._expected or 0 in finishes:
            raise self._broken("BACKEND_LOST", "the stream ended before the answer was finished")
        if FinishReason.ERROR in finishes:
            raise self._broken("BACKEND_LOST", "the backend failed while it was answering")
        if FinishReason.CANCELLED in finishes:
            raise self._broken("CANCELLED", "the request was cancelled by an operator")

    def _broken(self, reason: str, message: str) -> AnabranchError:
        tokens = sum(len(parts.tokens) for parts in self._parts.values())
        error = error_for(
            reason,
            message,
            _CODES[reason],
            work=Work.OUTPUT_SEEN if self._parts else Work.MAYBE_BILLED,
            metadata={"tokens_delivered": str(tokens)},
        )
        error.partial = self.answer
        return error
