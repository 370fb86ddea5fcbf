"""Metrics and spans of requests to providers. Records; decides nothing.

Names follow OpenTelemetry's conventions for generative AI where those name the thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind

from anabranch.v1 import generation_pb2 as pb
from services.chassis import tracing
from services.chassis.tracing import RequestTracer
from services.cloud_proxy.answer import Finish, ProviderUsage
from services.cloud_proxy.attempts import Attempt
from services.cloud_proxy.config import Route
from services.cloud_proxy.masking import NAMES


class Observer:
    """The instruments of one process."""

    def __init__(self, meter: Meter, tracer: RequestTracer) -> None:
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

    def usage(
        self, route: Route, usage: ProviderUsage, cost_microusd: int, operation: str = "chat"
    ) -> None:
        """What a request used."""
        labels = _labels(route, operation)
        for kind, count in (
            ("input", usage.prompt - usage.cached),
            ("cached_input", usage.cached),
            ("output", usage.completion),
        ):
            if count:
                self._tokens.add(count, {**labels, "gen_ai.token.type": kind})
        if cost_microusd:
            self._cost.add(cost_microusd, labels)

    def attempt_began(self, operation: str, attempt: Attempt, traceparent: str) -> Span | None:
        """A span of one attempt, under the caller's trace; None for one that is not sampled."""
        parent = self._tracer.parent_of(traceparent)
        if parent is None:
            return None
        route = attempt.candidate.route
        where = urlsplit(route.base_url)
        return self._tracer.start(
            f"{operation} {route.model.name}",
            parent,
            SpanKind.CLIENT,
            {
                **_labels(route, operation),
                "server.address": where.hostname or "",
                "server.port": where.port or (443 if where.scheme == "https" else 80),
                "anabranch.attempt": attempt.number,
                "anabranch.key": attempt.key,
            },
        )

    def asked(self, span: Span, request: pb.GenerateRequest) -> None:
        """What was asked for, without a word of the prompt."""
        span.set_attributes(tracing.sampling_of(request))

    def answered(self, span: Span, finishes: Iterable[Finish], usage: ProviderUsage) -> None:
        """How an answer ended and what it used."""
        span.set_attribute("gen_ai.response.finish_reasons", [str(f) for f in finishes])
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached)

    def attempt_ended(self, operation: str, attempt: Attempt, span: Span | None) -> None:
        """An attempt ended; closes its span."""
        failure = attempt.failure
        labels = _labels(attempt.candidate.route, operation)
        if failure is not None:
            labels["error.type"] = str(failure.kind)
        self._duration.record(attempt.seconds or 0.0, labels)
        if span is None:
            return
        if attempt.seen.http_status is not None:
            span.set_attribute("http.response.status_code", attempt.seen.http_status)
        if attempt.seen.request_id:
            span.set_attribute("anabranch.provider_request_id", attempt.seen.request_id)
        if failure is not None:
            tracing.ended_as(span, str(failure.kind), failure.cause)
        span.end()

    def cut_off(self, span: Span) -> None:
        """An attempt was given up with its request; closes its span."""
        tracing.cancelled(span)
        span.end()


def _labels(route: Route, operation: str = "chat") -> dict[str, str]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": route.profile.name,
        "gen_ai.request.model": route.model.name,
    }
