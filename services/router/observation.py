"""What the world sees of a request in the router: a span, GenAI metrics, a log line if it moves.

Names follow the OpenTelemetry semantic conventions for generative AI. Labels are
bounded: model, tier and outcome, never a client or a request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind

from anabranch.v1 import generation_pb2 as pb
from services.chassis import tracing
from services.chassis.counters import counted
from services.chassis.errors import Fault, reason_name
from services.chassis.histograms import Record, recorder
from services.chassis.model_handler import CallContext
from services.chassis.trace_context import passed_on, sampled_trace, trace_id_of
from services.chassis.tracing import RequestTracer
from services.router.core.values import Tier, Verdict
from services.router.receipt import ReceiptBuilder
from services.router.request_span import answered, show_attempts

_log = logging.getLogger(__name__)

Remember = Callable[[CallContext, str, Tier, str], None]
"""Keeps in mind whose request of which model was answered in which tier, by which backend."""

UNKNOWN = "unknown"
"""The model of a request for a name that nobody serves: as a label, the caller's text would be
unbounded."""


class _Series(NamedTuple):
    """Where the requests of one model and tier are counted."""

    ok: Callable[[], None]
    error: Callable[[], None]
    cancelled: Callable[[], None]
    duration: Record
    first_token: Record
    per_token: Record
    input_tokens: Record
    output_tokens: Record


class Observation:
    """One request's span and measurements, ended exactly once.

    `traceparent` is what the next hop is told. `remember` hears of an answer, for its caller's
    feedback.
    """

    __slots__ = (
        *("_began", "_context", "_model", "_observer", "_over", "_remember", "_span"),
        "traceparent",
    )

    def __init__(
        self,
        observer: Observer,
        model: str,
        span: Span | None,
        traceparent: str,
        context: CallContext,
        remember: Remember | None,
    ) -> None:
        self._observer = observer
        self._context = context
        self._remember = remember
        self._model = model
        self._span = span
        self._began = time.monotonic()
        self._over = False
        self.traceparent = traceparent

    def finished(self, chunk: pb.GenerateChunk, receipt: ReceiptBuilder) -> None:
        """The request ended with this last chunk, usage included."""
        observer = self._observer
        series = observer.series(self._model, receipt.tier)
        now = time.monotonic()
        seconds = now - self._began
        usage = chunk.usage
        given, output = usage.prompt_tokens, usage.completion_tokens
        ttft = receipt.ttft
        left = chunk.finish_reason == pb.FINISH_REASON_CANCELLED
        late = left and now >= self._context.deadline  # nobody left: its time ran out
        if not left:
            series.ok()
        elif late:
            series.error()
        else:
            series.cancelled()
        series.duration(seconds)
        if ttft is not None:
            series.first_token(ttft, sampled_trace(self.traceparent))
        decoding = seconds - (ttft or 0.0)
        if output > 1 and decoding > 0:
            series.per_token(decoding / (output - 1))
        series.input_tokens(given)
        series.output_tokens(output)
        if receipt.overflow is not None:
            labels = {"gen_ai.request.model": self._model, "reason": receipt.overflow.value}
            observer.overflows.add(1, labels)
        if self._remember is not None and receipt.tier is not None:
            self._remember(self._context, self._model, receipt.tier, receipt.backend_id)
        if receipt.resumes:
            observer.resumes.add(receipt.resumes, {"gen_ai.request.model": self._model})
        if receipt.overflow is not None or receipt.attempts > 1:
            self._tell(
                "request left its first choice",
                tier=receipt.tier.value if receipt.tier else "",
                backend=receipt.backend_id,
                overflow="" if receipt.overflow is None else receipt.overflow.value,
                attempts=receipt.attempts,
                resumes=receipt.resumes,
            )
        if self._span is not None:
            answered(self._span, chunk, receipt)
            if late:
                tracing.ended_as(self._span, "DEADLINE_EXCEEDED", "the request's time ran out")
            elif left:
                tracing.cancelled(self._span)
        self._end()

    def goes_on(self, request_id: str, fault: Fault, delivered: int, verdict: Verdict) -> None:
        """A backend failed it so, after so many tokens; this was decided for the rest."""
        _log.info(
            "going on elsewhere",
            extra={
                "request_id": request_id,
                "trace_id": trace_id_of(self.traceparent),
                "cause": fault.message,
                "delivered": delivered,
                "verdict": type(verdict).__name__,
            },
        )

    def failed(self, fault: Fault, receipt: ReceiptBuilder | None = None) -> None:
        """The request ended with an error, after what the receipt tells of."""
        if self._over:
            return
        tier = None if receipt is None else receipt.tier
        self._observer.series(self._model, tier).error()
        reason = reason_name(fault.reason)
        self._observer.failures.add(1, {"error.type": reason})
        # A provider's words may quote the prompt, which only its caller may read.
        words = "" if "provider" in fault.metadata else fault.message
        self._tell("request failed", reason=reason, cause=words, work=str(fault.work))
        if self._span is not None:
            if receipt is not None:
                show_attempts(self._span, receipt, reason)
            tracing.failed(self._span, fault)
        self._end()

    def _tell(self, message: str, **facts: object) -> None:
        """A line for who searches by the request's id. What went as foreseen has none: the
        caller's receipt and the audit trail tell of it."""
        ids = {
            "request_id": self._context.request_id,
            "trace_id": trace_id_of(self.traceparent),
            "model": self._model,
        }
        _log.info(message, extra=ids | facts)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._span is not None:
            self._span.end()


class Observer:
    """The instruments of one router process. `is_served` says which names of models may be
    labels. The traces of requests without a span are passed on."""

    def __init__(
        self,
        meter: Meter,
        tracer: RequestTracer,
        *,
        is_served: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._tracer = tracer
        self._is_served = is_served
        self._series: dict[tuple[str, Tier | None], _Series] = {}
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="From arrival to the last chunk",
        )
        self._first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From arrival to the first chunk",
        )
        self._per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Mean time between output tokens after the first",
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens of finished requests"
        )
        self._requests = meter.create_counter(
            "anabranch.router.requests", description="Requests that have ended, by how"
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

    def series(self, model: str, tier: Tier | None) -> _Series:
        """Where a request is counted; what nobody serves is one model."""
        found = self._series.get((model, tier))
        if found is None:
            if model != UNKNOWN and not self._is_served(model):
                return self.series(UNKNOWN, tier)
            labels = {
                "gen_ai.request.model": model,
                "anabranch.tier": tier.value if tier else "unspecified",
            }
            found = self._series[model, tier] = _Series(
                counted(self._requests, labels | {"outcome": "ok"}),
                counted(self._requests, labels | {"outcome": "error"}),
                counted(self._requests, labels | {"outcome": "cancelled"}),
                recorder(self._duration, labels),
                recorder(self._first_token, labels),
                recorder(self._per_token, labels),
                recorder(self._tokens, labels | {"gen_ai.token.type": "input"}),
                recorder(self._tokens, labels | {"gen_ai.token.type": "output"}),
            )
        return found

    def begin(
        self,
        request: pb.GenerateRequest,
        context: CallContext,
        remember: Remember | None = None,
    ) -> Observation:
        """Starts observing a request that has just arrived."""
        parent = self._tracer.parent_of(context.traceparent)
        if parent is None:
            onward = passed_on(context.traceparent)
            return Observation(self, request.model, None, onward, context, remember)
        span = self._tracer.start(
            f"chat {request.model}",
            parent,
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": request.model,
                "anabranch.request_id": context.request_id,
                "anabranch.tenant": context.caller.tenant,
            },
        )
        onward = tracing.traceparent_of(span)
        return Observation(self, request.model, span, onward, context, remember)

    def call(self, operation: str, model: str, context: CallContext) -> AbstractContextManager[str]:
        """A span around a small call about a model; gives the traceparent for the next hop."""
        return self._tracer.call(
            f"{operation} {model}",
            context.traceparent,
            lambda: {
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": model,
                "anabranch.request_id": context.request_id,
                "anabranch.tenant": context.caller.tenant,
            },
        )
