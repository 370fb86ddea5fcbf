"""What the world sees of a request in the router: one span, and the GenAI metrics.

Names follow the OpenTelemetry semantic conventions for generative AI. Labels are
bounded: model, tier and outcome, never a client or a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from anabranch.v1 import generation_pb2 as pb
from services.chassis import telemetry
from services.chassis.errors import Fault, reason_name
from services.chassis.model_handler import CallContext

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Observation:
    """One request's span and measurements, ended exactly once."""

    def __init__(self, observer: Observer, request: pb.GenerateRequest, span: Span) -> None:
        self._observer = observer
        self._model = request.model
        self._span = span
        self._began = time.monotonic()
        self._on_end: Callable[[], None] = lambda: None
        self._over = False
        self.traceparent = telemetry.inject(set_span_in_context(span))

    def on_end(self, then: Callable[[], None]) -> None:
        """Calls `then` once the request is over."""
        self._on_end = then

    def finished(self, chunk: pb.GenerateChunk) -> None:
        """The request ended with this last chunk, receipt and usage included."""
        receipt = chunk.receipt
        labels = {
            "gen_ai.request.model": self._model,
            "anabranch.tier": pb.Tier.Name(receipt.tier).removeprefix("TIER_").lower(),
        }
        observer = self._observer
        seconds = time.monotonic() - self._began
        observer.duration.record(seconds, labels)
        ttft = receipt.ttft.ToNanoseconds() / 1e9
        if receipt.HasField("ttft"):
            observer.first_token.record(ttft, labels)
        output = chunk.usage.completion_tokens
        if output > 1 and seconds > ttft:
            observer.per_token.record((seconds - ttft) / (output - 1), labels)
        observer.tokens.record(chunk.usage.prompt_tokens, {**labels, "gen_ai.token.type": "input"})
        observer.tokens.record(output, {**labels, "gen_ai.token.type": "output"})
        if receipt.overflow_reason:
            name = pb.OverflowReason.Name(receipt.overflow_reason)
            reason = name.removeprefix("OVERFLOW_REASON_").lower()
            observer.overflows.add(1, {"gen_ai.request.model": self._model, "reason": reason})
        if receipt.resumed_at_tokens:
            observer.resumes.add(
                len(receipt.resumed_at_tokens), {"gen_ai.request.model": self._model}
            )
        self._span.set_attributes(
            {
                "gen_ai.response.model": receipt.served_model,
                "gen_ai.usage.input_tokens": chunk.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": output,
                "anabranch.backend": receipt.backend_id,
                "anabranch.attempts": len(receipt.attempts),
            }
        )
        self._end()

    def failed(self, fault: Fault) -> None:
        """The request ended with an error."""
        if self._over:
            return
        reason = reason_name(fault.reason)
        # A model nobody serves is the caller's text: as a label it would be unbounded.
        self._observer.failures.add(1, {"error.type": reason})
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR, fault.message))
        self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._span.end()
        self._on_end()


class Observer:
    """The instruments of one router process."""

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self._tracer = tracer
        self.duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="From arrival to the last chunk",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From arrival to the first chunk",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Mean time between output tokens after the first",
            explicit_bucket_boundaries_advisory=tuple(s / 10 for s in _SECONDS),
        )
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens of finished requests"
        )
        self.overflows = meter.create_counter(
            "anabranch.router.overflows", description="Requests that left their preferred tier"
        )
        self.resumes = meter.create_counter(
            "anabranch.router.resumes", description="Answers gone on with on another backend"
        )
        self.failures = meter.create_counter(
            "anabranch.router.failures", description="Requests that ended with an error"
        )

    def begin(self, request: pb.GenerateRequest, context: CallContext) -> Observation:
        """Starts observing a request that has just arrived."""
        span = self._tracer.start_span(
            f"chat {request.model}",
            context=telemetry.extract(context.traceparent),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": request.model,
                "anabranch.request_id": context.request_id,
                "anabranch.tenant": context.caller.tenant,
            },
        )
        return Observation(self, request, span)
