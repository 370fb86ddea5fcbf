"""The span of one request in the engine: what it asked, how long it waited, what it brought.

Of what is asked only figures are in it, never a word of the prompt or the answer.
"""

from __future__ import annotations

import time

from opentelemetry.trace import Span, SpanKind

from anabranch.v1 import generation_pb2 as pb
from services.chassis import tracing
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext
from services.chassis.tracing import RequestTracer
from services.local_engine.engine import Finish, TokenUsage


class RequestSpan:
    """One request's span; ended exactly once, by `finished` or `failed`."""

    __slots__ = ("_first", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._first = True

    def submitted(self, prompt_tokens: int, continued_tokens: int) -> None:
        """Its prompt is encoded, and the engine has it."""
        self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        if continued_tokens:
            self._span.set_attribute("anabranch.continued_tokens", continued_tokens)
        self._span.add_event("anabranch.submitted")

    def output(self) -> None:
        """Output came."""
        if self._first:
            self._first = False
            self._span.add_event("anabranch.first_token")

    def finished(self, finish: Finish | None, usage: TokenUsage) -> None:
        """The last output came. Where the engine says it, the wait and the prefill are in it."""
        span = self._span
        attributes: dict[str, str | int | float | list[str]] = {
            "gen_ai.usage.input_tokens": usage.prompt,
            "gen_ai.usage.output_tokens": usage.completion,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_prompt,
        }
        if finish is not None:
            attributes["gen_ai.response.finish_reasons"] = [finish.value]
        if usage.queued is not None:
            attributes["anabranch.queue_seconds"] = usage.queued
        if usage.prefill is not None:
            attributes["anabranch.prefill_seconds"] = usage.prefill
        span.set_attributes(attributes)
        if finish is Finish.CANCELLED:
            tracing.cancelled(span)
        span.end()

    def failed(self, fault: Fault) -> None:
        """It ended with an error."""
        tracing.failed(self._span, fault)
        self._span.end()


def span_of(
    tracer: RequestTracer, request: pb.GenerateRequest, context: CallContext
) -> RequestSpan | None:
    """Begins the span of a request that has just arrived; None for one that is not sampled."""
    parent = tracer.parent_of(context.traceparent)
    if parent is None:
        return None
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": request.model,
        "anabranch.request_id": context.request_id,
        "anabranch.tenant": context.caller.tenant,
        **tracing.sampling_of(request),
    }
    name = f"chat {request.model}"
    return RequestSpan(tracer.start(name, parent, SpanKind.SERVER, attributes, time.time_ns()))
