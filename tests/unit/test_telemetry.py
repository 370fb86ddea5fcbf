"""Telemetry: what Prometheus reads, what a collector receives, and that instances stay apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import Counter
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from services.chassis import telemetry


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is exposed twice"
            found[key] = sample.value
    return found


async def test_instruments_appear_once_under_prometheus_names():
    one = telemetry.open("anabranch-test", "i-1")
    one.meter.create_counter("requests", unit="{request}").add(2, {"model": "m"})
    ttft = one.meter.create_histogram("gen_ai.server.time_to_first_token", unit="s")
    ttft.record(0.3)
    await one.flush()
    for _ in range(2):
        found = samples(one.prometheus_text())
    assert found["requests_total", (("model", "m"),)] == 2
    name = "gen_ai_server_time_to_first_token_seconds"
    assert found[f"{name}_count", ()] == 1
    assert found[f"{name}_bucket", (("le", "0.25"),)] == 0
    assert found[f"{name}_bucket", (("le", "0.5"),)] == 1
    assert ("process_resident_memory_bytes", ()) in found
    (info,) = [dict(labels) for name, labels in found if name == "target_info"]
    assert info["service_name"] == "anabranch-test"
    assert info["service_instance_id"] == "i-1"
    await one.close()


async def test_two_services_in_one_process_do_not_mix():
    first, second = telemetry.open("a", "1"), telemetry.open("b", "1")
    first.meter.create_counter("only_first").add(1)
    second.meter.create_counter("only_second").add(1)
    assert "only_second" not in first.prometheus_text()
    assert "only_first" not in second.prometheus_text()
    await first.close()
    assert "only_second_total" in second.prometheus_text()
    await second.close()
    await second.close()


async def test_scrapes_at_once_each_see_everything():
    one = telemetry.open("a", "1")
    one.meter.create_counter("c").add(1)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: one.prometheus_text(), range(64)))
    assert all(samples(text)["c_total", ()] == 1 for text in texts)
    await one.close()


async def test_metrics_of_another_library_keep_their_names():
    one = telemetry.open("a", "1")
    Counter("vllm:requests", "theirs", registry=one.registry).inc()
    assert "vllm:requests_total 1.0" in one.prometheus_text()
    assert "vllm:requests_total 1.0" in one.openmetrics_text()
    await one.close()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, list[ExportTraceServiceRequest], list[str]]]:
    spans: list[ExportTraceServiceRequest] = []
    metrics: list[str] = []

    async def take_traces(request: web.Request) -> web.Response:
        spans.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def take_metrics(request: web.Request) -> web.Response:
        got = ExportMetricsServiceRequest.FromString(await request.read())
        metrics.extend(
            m.name for r in got.resource_metrics for s in r.scope_metrics for m in s.metrics
        )
        return web.Response(body=b"", content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take_traces)
    app.router.add_post("/v1/metrics", take_metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/", spans, metrics
    await runner.cleanup()


async def test_a_traced_measurement_is_an_exemplar_in_openmetrics_and_over_otlp():
    one = telemetry.open("anabranch-test", "i-1")
    one.meter.create_histogram("h", unit="s").series({"m.x": "y"}).record(0.3, "ab" * 16)
    one.meter.create_histogram("h", unit="s").record(0.3, {})
    (metric,) = [found for h in one.meter.histograms() if (found := h.metric())]
    traced = [e for p in metric.data.data_points for e in p.exemplars]
    assert [(e.value, e.trace_id) for e in traced] == [(0.3, int("ab" * 16, 16))]
    shown = [
        (sample.labels, sample.exemplar.labels, sample.exemplar.value)
        for family in openmetrics_families(one.openmetrics_text())
        for sample in family.samples
        if sample.exemplar
    ]
    assert shown == [({"m_x": "y", "le": "0.5"}, {"trace_id": "ab" * 16}, 0.3)]
    assert "ab" * 16 not in one.prometheus_text()
    await one.close()


async def test_a_collector_receives_spans_and_metrics_before_the_process_ends(collector):
    url, spans, metrics = collector
    one = telemetry.open("anabranch-test", "i-1", url)
    one.meter.create_counter("c").add(1)
    one.meter.create_histogram("h").record(1)
    with one.tracer.start_as_current_span("work"):
        pass
    await one.close()
    names = [
        span.name
        for request in spans
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names == ["work"]
    assert {"c", "h"} <= set(metrics)


async def test_a_collector_that_is_down_neither_raises_nor_holds_up_the_end(monkeypatch):
    monkeypatch.setattr(telemetry, "_EXPORT_TIMEOUT", 1.0)
    one = telemetry.open("a", "1", "http://127.0.0.1:9")
    one.meter.create_counter("c").add(1)
    with one.tracer.start_as_current_span("work"):
        pass
    await one.close()
