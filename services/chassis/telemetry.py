"""Metrics and traces of one process: OpenTelemetry in, Prometheus text and OTLP out.

Nothing global is set, so several services can live in one process, each with its own registry and
providers. What is measured is decided where it happens; logs are in logs.py.
"""

from __future__ import annotations

import asyncio
import threading

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.chassis.version import VERSION

_PROPAGATOR = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT = 5.0  # s
_EXPORT_EVERY = 15.0  # s
# From a cached health answer to the longest generation; 2 s is where an alert looks.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0),
)
_TOKENS = tuple(float(4**n) for n in range(11))  # 1 to a million


class Telemetry:
    """The instruments of one service instance. Made by `open`, ended by `close`."""

    def __init__(self, resource: Resource, version: str, otlp_endpoint: str) -> None:
        service = str(resource.attributes["service.name"])
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._rendering = threading.Lock()
        self._closed = False
        self._prometheus = PrometheusMetricReader(registry=self.registry, scope_info_enabled=False)
        self._pushed: MetricReader | None = None
        if otlp_endpoint:
            self._pushed = PeriodicExportingMetricReader(
                OTLPMetricExporter(f"{otlp_endpoint}/v1/metrics", timeout=_EXPORT_TIMEOUT),
                export_interval_millis=_EXPORT_EVERY * 1000,
                export_timeout_millis=_EXPORT_TIMEOUT * 1000,
            )
        self._metrics = MeterProvider(
            [self._prometheus, *([self._pushed] if self._pushed else [])],
            resource=resource,
            shutdown_on_exit=False,
            views=[_buckets("s", _SECONDS), _buckets("{token}", _TOKENS)],
        )
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
        self.meter: Meter = self._metrics.get_meter(service, version)
        self.tracer: Tracer = self._traces.get_tracer(service, version)

    def prometheus_text(self) -> str:
        """Every metric in Prometheus' text format 0.0.4. Thread-safe; takes milliseconds.

        Collectors of other libraries can be registered with `registry` and appear unrenamed.
        """
        # The reader hands its data over through a queue that two scrapes at once would mix up.
        with self._rendering:
            return generate_latest(self.registry).decode()

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


def open(service: str, instance: str, otlp_endpoint: str = "") -> Telemetry:
    """The telemetry of one service instance; spans and metrics also go to the OTLP/HTTP collector
    at the base URL `otlp_endpoint` if there is one.

    Histograms of unit `s` and `{token}` get boundaries that fit requests to models; those of
    other units keep the boundaries that their instrument advises.
    """
    resource = Resource(
        {
            "service.name": service,
            "service.instance.id": instance,
            "service.version": VERSION,
        }
    )
    return Telemetry(resource, VERSION, otlp_endpoint.rstrip("/"))


def extract(traceparent: str) -> Context:
    """The context that a W3C traceparent describes; an empty one when it describes none."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=Context())


def inject(context: Context | None = None) -> str:
    """The W3C traceparent of `context`, by default the current one; empty outside any span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=context)
    return carrier.get("traceparent", "")


def _buckets(unit: str, boundaries: tuple[float, ...]) -> View:
    return View(
        instrument_type=Histogram,
        instrument_unit=unit,
        aggregation=ExplicitBucketHistogramAggregation(boundaries),
    )
