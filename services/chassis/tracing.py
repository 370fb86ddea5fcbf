"""Which requests have spans, under which parent, and what the next hop is told.

For the hot path: a request that is not sampled costs a look at its trace context, where the SDK
would make a span that records nothing. What a span says is decided where the request is handled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1.errors_pb2 import ERROR_REASON_INVALID_REQUEST
from services.chassis.errors import Fault, reason_name
from services.chassis.trace_context import is_valid, passed_on, sampled_trace

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
CANCELLED = "CANCELLED"
"""The error.type of a span whose request was cancelled."""

_ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}


def sampling_of(request: pb.GenerateRequest) -> dict[str, AttributeValue]:
    """How an answer was to be sampled, as a span's attributes; without a word of the prompt."""
    sampling = request.sampling
    return {
        attribute: getattr(sampling, name)
        for name, attribute in _ASKED.items()
        if sampling.HasField(name)
    }


class RequestTracer:
    """Starts the spans of requests.

    A caller's own decision to sample counts; of those who made none, a share of `ratio` (0 to 1)
    is sampled. With `recording` off, without a collector, no spans are made at all.
    """

    def __init__(
        self,
        tracer: Tracer,
        *,
        recording: bool,
        ratio: float = 1.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._tracer = tracer
        self._recording = recording
        self._ratio = ratio
        self._chance = chance

    def parent_of(self, traceparent: str) -> Context | None:
        """What a span of this request hangs under; None when it is to have none."""
        if not self._recording:
            return None
        if sampled_trace(traceparent):
            trace_id, span_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
            far = SpanContext(trace_id, span_id, is_remote=True, trace_flags=_SAMPLED)
            return set_span_in_context(NonRecordingSpan(far), Context())
        if is_valid(traceparent):
            return None  # its caller has decided so
        return Context() if self._chance() < self._ratio else None

    def start(
        self,
        name: str,
        parent: Context,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
        began: int | None = None,
    ) -> Span:
        """A span under what `parent_of` gave; `began` in ns since 1970, by default now."""
        return self._tracer.start_span(
            name, context=parent, kind=kind, attributes=attributes, start_time=began
        )

    @contextmanager
    def call(
        self,
        name: str,
        traceparent: str,
        attributes: Callable[[], Mapping[str, AttributeValue]],
    ) -> Iterator[str]:
        """A span around a small call; gives what the next hop is told."""
        parent = self.parent_of(traceparent)
        if parent is None:
            yield passed_on(traceparent)
            return
        span = self.start(name, parent, SpanKind.SERVER, attributes())
        try:
            yield traceparent_of(span)
        except Fault as fault:
            failed(span, fault)
            raise
        except BaseException as other:
            # Its words may be anybody's.
            ended_as(span, CANCELLED if not isinstance(other, Exception) else "INTERNAL")
            raise
        finally:
            span.end()


def traceparent_of(span: Span) -> str:
    """The W3C traceparent that makes a span the parent of what comes."""
    own = span.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


def cancelled(span: Span) -> None:
    """Its caller wanted no more."""
    ended_as(span, CANCELLED, "cancelled by the caller")


def failed(span: Span, fault: Fault) -> None:
    """It ended with this fault."""
    # What was wrong with a request, or a provider's words, may quote the prompt, which only its
    # caller may read.
    quotes = fault.reason == ERROR_REASON_INVALID_REQUEST or "provider" in fault.metadata
    ended_as(span, reason_name(fault.reason), None if quotes else fault.message)


def ended_as(span: Span, reason: str, words: str | None = None) -> None:
    """It is no success, for this reason."""
    span.set_attribute("error.type", reason)
    span.set_status(Status(StatusCode.ERROR, words))
