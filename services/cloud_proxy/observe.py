"""Metrics and spans of requests to providers. Records; decides nothing.

Names follow OpenTelemetry's conventions for generative AI where those name the thing.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import ProviderFailure, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.masking import NAMES

_PROPAGATOR = TraceContextTextMapPropagator()


class Observer:
    """The instruments of one process."""

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", unit="s", description="Duration of attempts"
        )
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token", unit="s", description="Start to first output"
        )
        self._tokens = meter.create_counter(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens by kind"
        )
        self._cost = meter.create_counter(
            "anabranch.cloud.cost", unit="{microusd}", description="Cost at list prices"
        )
        self._dropped = meter.create_counter(
            "anabranch.cloud.parameters_dropped",
            description="Sampling parameters left out because the profile says so",
        )
        self._masked = meter.create_counter(
            "anabranch.cloud.entities_masked",
            unit="{entity}",
            description="Personal data and keys masked in prompts, each once a request",
        )
        self._running = meter.create_up_down_counter(
            "anabranch.cloud.requests_running", description="Requests at providers now"
        )

    def running(self, change: int) -> None:
        """A request began (1) or ended (-1)."""
        self._running.add(change)

    def dropped(self, route: Route, parameter: str) -> None:
        """A parameter was left out."""
        self._dropped.add(1, {**_labels(route), "anabranch.parameter": parameter})

    def masked(self, route: Route, counts: Mapping[pb.PiiKind, int]) -> None:
        """A request leaves with so many entities masked, by kind."""
        for kind, count in counts.items():
            self._masked.add(count, {**_labels(route), "anabranch.pii.kind": NAMES[kind]})

    def first_output(self, route: Route, seconds: float) -> None:
        """The first output of a request came."""
        self._first.record(seconds, _labels(route))

    def usage(self, route: Route, usage: ProviderUsage, cost_microusd: int) -> None:
        """What a request used."""
        labels = _labels(route)
        for kind, count in (
            ("input", usage.prompt - usage.cached),
            ("cached_input", usage.cached),
            ("output", usage.completion),
        ):
            if count:
                self._tokens.add(count, {**labels, "gen_ai.token.type": kind})
        if cost_microusd:
            self._cost.add(cost_microusd, labels)

    def start_span(self, route: Route, traceparent: str) -> Span:
        """A span of one attempt, under the caller's trace."""
        parent = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else Context()
        return self._tracer.start_span(
            f"chat {route.model.name}",
            context=parent,
            kind=SpanKind.CLIENT,
            attributes={**_labels(route), "gen_ai.operation.name": "chat"},
        )

    def attempt(
        self, route: Route, seconds: float, failure: ProviderFailure | None, span: Span
    ) -> None:
        """An attempt ended; closes its span."""
        labels = _labels(route)
        if failure is not None:
            labels["error.type"] = str(failure.kind)
            span.set_status(Status(StatusCode.ERROR, failure.message))
            span.set_attribute("error.type", str(failure.kind))
            if failure.http_status is not None:
                span.set_attribute("http.response.status_code", failure.http_status)
        self._duration.record(seconds, labels)
        span.end()


def _labels(route: Route) -> dict[str, str]:
    return {
        "gen_ai.provider.name": route.profile.name,
        "gen_ai.request.model": route.model.name,
    }
