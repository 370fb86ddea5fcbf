"""OpenTelemetry for the client: a CLIENT span around each request, under the caller's current one.

    from anabranch import AsyncClient
    from anabranch.tracing import OpenTelemetry

    client = AsyncClient("router:50051", token=token, tracing=OpenTelemetry())

Needs opentelemetry-api (`pip install "anabranch[tracing]"`), which nothing else of the client
imports. Whether spans are recorded, and where they go, is the application's own set-up: without
one the context of the caller's span still travels.
"""

from __future__ import annotations

from opentelemetry import trace

from anabranch.errors import AnabranchError
from anabranch.spans import Attributes


class OpenTelemetry:
    """Tracing by OpenTelemetry; `tracer` replaces the one of the application's global provider."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("anabranch")

    def begin(self, name: str, attributes: Attributes) -> Span:
        """Starts a span that the caller's current one is the parent of."""
        span = self._tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        return Span(span)


class Span:
    """One request's span."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """As W3C writes it."""
        own = self._span.get_span_context()
        if not own.is_valid:
            return ""
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"

    def event(self, name: str, attributes: Attributes) -> None:
        """Something happened to the request."""
        self._span.add_event(name, attributes)

    def end(self, error: AnabranchError | None, attributes: Attributes) -> None:
        """The request is over."""
        self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_attribute("error.type", error.reason)
            # Its words may quote the prompt.
            self._span.set_status(trace.Status(trace.StatusCode.ERROR))
        self._span.end()
