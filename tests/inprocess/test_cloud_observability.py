"""What operators see of requests to providers: a span for each attempt, over real OTLP, metrics,
a trail; and in none of them a prompt, an answer, a key or a personal datum."""

from __future__ import annotations

import gzip
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from anabranch.v1 import generation_pb2 as pb
from tests.support.cloud import ask, cloud_proxy
from tests.support.provider import KEY

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
# Each must be found nowhere; the prompt's words are echoed by the simulator's answer.
SECRETS = (KEY, "xylophone", "ann@example.org", "4111111111111111")
PROMPT = f"say it back: xylophone of {SECRETS[2]} paid with {SECRETS[3]}"


class Collector:
    """An OTLP collector over HTTP, which keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""

    async def traces(self, request: web.Request) -> web.Response:
        # aiohttp inflates what says that it is deflated; a collector takes it either way.
        body = await request.read()
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        self.raw += body
        for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    def attempts(self) -> list[dict[str, Any]]:
        """The attributes of the attempts' spans, in the order of their start."""
        own = [s for s in self.spans if s.name.startswith(("chat ", "embeddings "))]
        return [
            {a.key: _value(a.value) for a in span.attributes}
            | {"name": span.name, "trace": span.trace_id.hex(), "parent": span.parent_span_id.hex()}
            for span in sorted(own, key=lambda s: s.start_time_unix_nano)
        ]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(v) for v in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.traces)
    app.router.add_post("/v1/metrics", found.metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield found, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_every_attempt_is_a_span_with_what_it_asked_and_used(tmp_path):
    async with collector() as (seen, endpoint):
        async with cloud_proxy(tmp_path, otlp_endpoint=endpoint, warm=False) as proxy:
            await proxy.provider.fault("5xx", status=503)
            metadata = [*proxy.metadata, ("traceparent", TRACEPARENT)]
            sampling = pb.Sampling(max_tokens=5, temperature=0.5)
            answer = await proxy.stub.Generate(ask(sampling=sampling), metadata=metadata)
            port = int(proxy.provider.url.rpartition(":")[2])
        # Leaving the context flushes what is buffered.
        failed, answered = seen.attempts()
    for span in (failed, answered):
        assert span["name"] == "chat sim-chat"
        assert span["trace"] == TRACE
        assert span["gen_ai.operation.name"] == "chat"
        assert span["gen_ai.provider.name"] == "simulator"
        assert span["gen_ai.request.model"] == "sim-chat"
        assert span["gen_ai.request.max_tokens"] == 5
        assert span["gen_ai.request.temperature"] == 0.5
        assert (span["server.address"], span["server.port"]) == ("127.0.0.1", port)
    assert (failed["anabranch.attempt"], answered["anabranch.attempt"]) == (1, 2)
    assert (failed["http.response.status_code"], failed["error.type"]) == (503, "failed")
    assert answered["http.response.status_code"] == 200
    assert "error.type" not in answered
    assert answered["gen_ai.response.finish_reasons"] == ["length"]
    assert answered["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert answered["gen_ai.usage.output_tokens"] == 5
    trail = [(a.error, a.http_status) for a in answer.receipt.provider_attempts]
    assert trail == [("failed", 503), ("", 200)]


async def test_secrets_are_in_no_span_log_metric_error_or_receipt(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with collector() as (seen, endpoint):
        async with cloud_proxy(tmp_path, otlp_endpoint=endpoint, attempts=1, warm=False) as proxy:
            good = await proxy.answer(ask(PROMPT))
            assert "xylophone" in good.choices[0].text
            said.append(str(good.receipt))
            for kind, params in (
                ("4xx", {"status": 400, "message": f"bad {KEY}"}),
                ("5xx", {"status": 500, "message": f"{KEY} and {PROMPT}"}),
                ("garbage", {"after": 1}),
                ("error_after_200", {"after": 1}),
                ("cut", {"after": 1}),
                # The last: after it the key is left alone.
                ("4xx", {"status": 401, "message": f"wrong key {KEY}"}),
            ):
                await proxy.provider.fault(kind, **params)
                _, ended = await proxy.chunks(ask(PROMPT))
                said.append(repr(ended and (ended.message, ended.metadata)))
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://{proxy.host.http_address}/metrics") as response,
            ):
                said.append(await response.text())
        assert len(seen.attempts()) == 7
        said.append(seen.raw.decode("utf-8", "replace"))
    out, err = capfd.readouterr()
    records = [str(record.__dict__) for record in caplog.records if record.name != "aiohttp.access"]
    everything = "\n".join([*said, *records, out, err])
    assert "attempt failed" in everything
    assert [secret for secret in SECRETS if secret in everything] == []


@pytest.mark.parametrize(
    "name",
    ["gen_ai_client_operation_duration_seconds_count", "gen_ai_client_token_usage_total",
     "gen_ai_server_time_to_first_token_seconds_count", "anabranch_cloud_cost_total",
     "anabranch_cloud_requests_running"],
)  # fmt: skip
async def test_metrics_are_there_by_provider_and_model(tmp_path, name):
    async with cloud_proxy(tmp_path, warm=False) as proxy:
        await proxy.answer(ask())
        assert await proxy.metric(name)
