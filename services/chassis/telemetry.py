"""Metrics and traces of one process: OpenTelemetry in, Prometheus text and OTLP out.

Nothing global is set, so several services can live in one process, each with its own registry and
providers. What is measured is decided where it happens; logs are in logs.py.
"""

from __future__ import annotations

import asyncio
import threading

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.chassis import openmetrics
from services.chassis.histograms import CountingHistogram
from services.chassis.meter import CountingMeter, PushedReader, ScrapedReader
from services.chassis.tracing import RequestTracer
from services.chassis.version import VERSION

_EXPORT_TIMEOUT = 5.0  # s
_EXPORT_EVERY = 15.0  # s


class Telemetry:
    """The instruments of one service instance. Made by `open`, ended by `close`."""

    def __init__(
        self, resource: Resource, version: str, otlp_endpoint: str, sample_ratio: float
    ) -> None:
        service = str(resource.attributes["service.name"])
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._rendering = threading.Lock()
        self._closed = False
        # The readers are made before the meter whose counts they add.
        self._prometheus = ScrapedReader(self._with_counts, self._histograms, self.registry)
        self._pushed: MetricReader | None = None
        if otlp_endpoint:
            self._pushed = PushedReader(
                self._with_counts,
                OTLPMetricExporter(f"{otlp_endpoint}/v1/metrics", timeout=_EXPORT_TIMEOUT),
                every=_EXPORT_EVERY,
                timeout=_EXPORT_TIMEOUT,
            )
        self._metrics = MeterProvider(
            [self._prometheus, *([self._pushed] if self._pushed else [])],
            resource=resource,
            shutdown_on_exit=False,
        )
        self.meter = CountingMeter(self._metrics.get_meter(service, version), service, version)
        # Without a collector nothing of ours is worth recording, but a caller's decision to
        # sample still travels on to services that have one.
        self._traces = TracerProvider(
            sampler=ParentBased(ALWAYS_ON if otlp_endpoint else ALWAYS_OFF),
            resource=resource,
            shutdown_on_exit=False,
        )
        if otlp_endpoint:
            exporter = OTLPSpanExporter(f"{otlp_endpoint}/v1/traces", timeout=_EXPORT_TIMEOUT)
            self._traces.add_span_processor(
                BatchSpanProcessor(exporter, export_timeout_millis=_EXPORT_TIMEOUT * 1000)
            )
        self.tracer: Tracer = self._traces.get_tracer(service, version)
        self.requests = RequestTracer(
            self.tracer, recording=bool(otlp_endpoint), ratio=sample_ratio
        )

    def _with_counts(self, data: MetricsData) -> MetricsData:
        return self.meter.added_to(data)

    def _histograms(self) -> tuple[CountingHistogram, ...]:
        return self.meter.histograms()

    def prometheus_text(self) -> str:
        """Every metric in Prometheus' text format 0.0.4. Thread-safe; takes milliseconds.

        Collectors of other libraries can be registered with `registry` and appear unrenamed.
        """
        # The reader hands its data over through a queue that two scrapes at once would mix up.
        with self._rendering:
            return generate_latest(self.registry).decode()

    def openmetrics_text(self) -> str:
        """The same in OpenMetrics 1.0, which has exemplars: traces of requests behind a bucket."""
        with self._rendering:
            return openmetrics.render(self.registry).decode()

    async def flush(self) -> None:
        """Sends what is buffered, for at most some seconds; a failure is only logged."""
        await asyncio.to_thread(self._flush)

    async def close(self) -> None:
        """Flushes and ends the exporters. Idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._shut_down)

    def _flush(self) -> None:
        # Reader by reader: the provider's own flush would leave a stale copy of every series
        # in the Prometheus reader, and raises a bare Exception.
        if self._pushed is not None:
            self._pushed.force_flush(_EXPORT_TIMEOUT * 1000)
        self._traces.force_flush(int(_EXPORT_TIMEOUT * 1000))

    def _shut_down(self) -> None:
        if self._pushed is not None:
            self._pushed.shutdown(_EXPORT_TIMEOUT * 1000)
        self._prometheus.shutdown()
        self._traces.shutdown()


def open(
    service: str, instance: str, otlp_endpoint: str = "", *, sample_ratio: float = 1.0
) -> Telemetry:
    """The telemetry of one service instance; spans and metrics also go to the OTLP/HTTP collector
    at the base URL `otlp_endpoint` if there is one. `sample_ratio`: see RequestTracer.

    Counts and histograms are kept in place (meter.py).
    """
    resource = Resource(
        {
            "service.name": service,
            "service.instance.id": instance,
            "service.version": VERSION,
        }
    )
    return Telemetry(resource, VERSION, otlp_endpoint.rstrip("/"), sample_ratio)
