"""Metrics and traces of one process: OpenTelemetry in, Prometheus text and OTLP out.

Nothing global is set, so several services can live in one process, each with its own registry and
providers. What is measured is decided where it happens; logs are in logs.py.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.chassis.histograms import CountingHistogram
from services.chassis.meter import CountingMeter, PushedReader, ScrapedReader
from services.chassis.version import VERSION

_PROPAGATOR = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT = 5.0  # s
_EXPORT_EVERY = 15.0  # s
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
)
_ODD = frozenset("13579bdf")


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
            text: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return text.decode()

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

    Counts and histograms are kept in place (meter.py).
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


def sampled_trace(traceparent: str) -> str:
    """The trace id, in hex, of a request whose trace is recorded; empty for any other."""
    # The lowest bit of the flags: the last digit is odd.
    if traceparent[-1:] in _ODD and _TRACEPARENT.match(traceparent):
        return traceparent[3:35]
    return ""


def passed_on(traceparent: str) -> str:
    """The traceparent for the next hop of a service that records no spans itself.

    The caller's own, unchanged, so that the next recorded span hangs on the last one recorded;
    a new one, not to be sampled, where the caller sent none that is valid.
    """
    if traceparent and _TRACEPARENT.match(traceparent):
        return traceparent
    number = random.getrandbits(192)
    ids = f"{number:048x}"
    return f"00-{ids[:32]}-{ids[32:]}-00"
