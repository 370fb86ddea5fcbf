"""A collector that takes OTLP over HTTP from real exporters, and what it has been told."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass
class ToldSpan:
    """A span as it arrived; ids in hex, `parent` empty for none."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    words: str


@dataclass
class Collector:
    """`url` is what settings name. `raw` is everything that came, for searches."""

    url: str = ""
    spans: list[ToldSpan] = field(default_factory=list)
    raw: bytes = b""

    def of(self, service: str) -> list[ToldSpan]:
        return [span for span in self.spans if span.service == service]

    async def take_traces(self, request: web.Request) -> web.Response:
        # aiohttp inflates what says that it is deflated; a collector takes it either way.
        body = await request.read()
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {a.key: value_of(a.value) for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [told(str(about["service.name"]), span) for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def take_metrics(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=b"", content_type="application/x-protobuf")


def told(service: str, span: Any) -> ToldSpan:
    return ToldSpan(
        service,
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        {a.key: value_of(a.value) for a in span.attributes},
        [(e.name, {a.key: value_of(a.value) for a in e.attributes}) for e in span.events],
        span.status.code == Status.STATUS_CODE_ERROR,
        span.status.message,
    )


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(v) for v in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take_traces)
    app.router.add_post("/v1/metrics", found.take_metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield found
    finally:
        await runner.cleanup()
