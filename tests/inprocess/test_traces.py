"""One trace through real services to a real collector: client, router, engine or cloud proxy.

Every parent id is right, through sessions and plain RPCs, also of what is cancelled or fails; and
no prompt, no answer and no credential is in any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import grpc
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from anabranch import AnabranchError, AsyncClient, Residency
from anabranch.tracing import OpenTelemetry
from anabranch.v1 import generation_pb2 as pb
from services.chassis.settings import Secret
from services.local_engine import app as engine_app
from services.local_engine import settings as engine_settings
from tests.support.auth import bearer, until
from tests.support.engines import MODEL as WEIGHTS
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.otlp import Collector, ToldSpan, collector
from tests.support.provider import KEY, Provider, routes_file, simulator
from tests.support.waiting import BOUND_S

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "xylophone"
VLLM_METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
)
ROUTER, ENGINE, CLOUD = "anabranch-router", "anabranch-engine", "anabranch-cloud"


def caller(flags: str = "01", trace: str = TRACE) -> tuple[str, str]:
    return ("traceparent", f"00-{trace}-{CALLER}-{flags}")


@dataclass
class Scene:
    """A cluster that tells a collector, and an application that traces its own calls."""

    running: Cluster
    provider: Provider
    collector: Collector
    tracers: TracerProvider
    client: AsyncClient
    token: str
    secrets: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return list(bearer(self.token))


@asynccontextmanager
async def scene(
    tmp_path: Path,
    ratio: float = 1.0,
    *,
    callers: float = 100.0,
    callers_of_engines: float = 100.0,
) -> AsyncIterator[Scene]:
    """When it is left, everything has told the collector."""
    async with collector() as told, simulator(KEY) as provider:
        traced = {"otlp_endpoint": told.url, "trace_sample_ratio": ratio}
        tracers = TracerProvider(
            resource=Resource({"service.name": "shop"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(f"{told.url}/v1/traces")
        tracers.add_span_processor(BatchSpanProcessor(exporter))
        engine = traced | {"trace_callers_per_second": callers_of_engines}
        router = traced | {"trace_callers_per_second": callers}
        async with cluster(tmp_path, engines=(engine,), router=router) as running:
            models = routes_file(tmp_path, provider.url)
            await running.add_cloud(
                models, api_keys=Secret(f"simulator={KEY}"), warm=False, **traced
            )
            await running.backends_ready(2)
            assert running.router is not None
            secret = await running.new_client("shop", "generate")
            token = await running.token("shop", secret)
            tracing = OpenTelemetry(tracers.get_tracer("shop"))
            async with AsyncClient(running.router.address, token=token, tracing=tracing) as client:
                yield Scene(
                    running, provider, told, tracers, client, token, [KEY, token, secret, PROMPT]
                )
        await asyncio.to_thread(tracers.shutdown)


def only(spans: list[ToldSpan]) -> ToldSpan:
    (one,) = spans
    return one


def chain(told: Collector, *services: str) -> list[ToldSpan]:
    """The spans of one request, each the only one of its service, and the parent of the next."""
    found = [
        only([s for s in told.of(service) if s.name.startswith("chat ")]) for service in services
    ]
    assert len({span.trace for span in found}) == 1
    for above, below in pairwise(found):
        assert below.parent == above.id
    return found


def assert_nothing_private(s: Scene) -> None:
    for secret in s.secrets:
        assert secret.encode() not in s.collector.raw


async def test_a_session_s_request_is_one_trace_from_the_application_to_the_engine(tmp_path):
    async with scene(tmp_path) as s:
        with s.tracers.get_tracer("shop").start_as_current_span("checkout"):
            answer = await s.client.generate(
                model=MODEL, messages=PROMPT, max_tokens=5, temperature=0.5
            )
        assert answer.text
        s.secrets.append(answer.text)
    client, router, engine = chain(s.collector, "shop", ROUTER, ENGINE)
    checkout = only([span for span in s.collector.of("shop") if span.name == "checkout"])
    assert (checkout.parent, client.parent) == ("", checkout.id)
    assert [span.kind for span in (client, router, engine)] == [
        WireSpan.SPAN_KIND_CLIENT,
        WireSpan.SPAN_KIND_SERVER,
        WireSpan.SPAN_KIND_SERVER,
    ]
    for span in (client, router, engine):
        assert span.name == f"chat {MODEL}"
        assert not span.failed
        assert span.attributes["gen_ai.operation.name"] == "chat"
        assert span.attributes["gen_ai.usage.output_tokens"] == 5
        assert span.attributes["anabranch.request_id"] == answer.request_id
        assert "anabranch.first_token" in [name for name, _ in span.events]
    assert engine.attributes["gen_ai.request.temperature"] == 0.5
    assert engine.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert engine.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert [name for name, _ in engine.events] == ["anabranch.submitted", "anabranch.first_token"]
    (attempt,) = [about for name, about in router.events if name == "anabranch.attempt"]
    assert attempt["anabranch.backend"] == router.attributes["anabranch.backend"]
    assert (attempt["anabranch.tier"], attempt["anabranch.outcome"]) == ("local", "ok")
    assert_nothing_private(s)


async def test_a_plain_call_is_one_trace_too_and_so_is_a_small_one(tmp_path):
    async with scene(tmp_path) as s, s.running.channel(s.running.router) as channel:
        stub = model_stub(channel)
        request = pb.GenerateRequest(model=MODEL, prompt=PROMPT)
        request.sampling.max_tokens = 3
        metadata = [*s.metadata, caller()]
        async for _ in stub.StreamGenerate(request, metadata=metadata, timeout=BOUND_S):
            pass
        count = await s.client.count_tokens(model=MODEL, messages=PROMPT)
        assert count.prompt_tokens
    router, engine = chain(s.collector, ROUTER, ENGINE)
    assert (router.trace, router.parent) == (TRACE, CALLER)
    assert not engine.failed
    asked = only([span for span in s.collector.of("shop") if span.name == "CountTokens"])
    small = only([span for span in s.collector.of(ROUTER) if span.name.startswith("count_tokens")])
    assert (small.trace, small.parent) == (asked.trace, asked.id)
    assert_nothing_private(s)


async def test_attempts_at_providers_hang_under_the_router_s_span(tmp_path):
    async with scene(tmp_path) as s:
        await s.provider.fault("5xx", status=503)
        answer = await s.client.generate(
            model="cloud-chat", messages=PROMPT, max_tokens=4, residency=Residency.CLOUD_ONLY
        )
        assert answer.text
    _, router = chain(s.collector, "shop", ROUTER)
    assert router.attributes["anabranch.tier"] == "cloud"
    attempts = sorted(s.collector.of(CLOUD), key=lambda span: span.attributes["anabranch.attempt"])
    assert [(a.trace, a.parent, a.kind) for a in attempts] == [
        (router.trace, router.id, WireSpan.SPAN_KIND_CLIENT)
    ] * 2
    assert [a.failed for a in attempts] == [True, False]
    assert_nothing_private(s)


@pytest.mark.parametrize("where", [ENGINE, CLOUD])
async def test_whose_caller_leaves_ends_every_span_as_cancelled(tmp_path, where):
    async with scene(tmp_path) as s:
        simulation = s.running.engines[0].simulation

        async def is_running() -> bool:
            return simulation.load().running > 0

        if where == ENGINE:
            simulation.slowdown = 100.0
            model = MODEL
        else:
            await s.provider.fault("stall", after=1)
            model = "cloud-chat"
        async with s.client.stream(model=model, messages=PROMPT, max_tokens=1000):
            if where == ENGINE:
                await until(is_running)
            else:
                await s.provider.until(lambda state: bool(state["requests"]))
    for span in chain(s.collector, "shop", ROUTER, where):
        assert span.failed
        assert span.attributes["error.type"] == "CANCELLED"
    (attempt,) = [
        about for name, about in only(s.collector.of(ROUTER)).events if name == "anabranch.attempt"
    ]
    assert attempt["anabranch.outcome"] == "CANCELLED"
    assert_nothing_private(s)


async def test_what_fails_ends_its_spans_with_the_reason(tmp_path):
    async with scene(tmp_path) as s:
        await s.provider.fault("4xx", status=400, message=f"bad {KEY}: {PROMPT}")
        with pytest.raises(AnabranchError) as failure:
            await s.client.generate(
                model="cloud-chat", messages=PROMPT, residency=Residency.CLOUD_ONLY
            )
    client, router, attempt = chain(s.collector, "shop", ROUTER, CLOUD)
    assert [span.failed for span in (client, router, attempt)] == [True] * 3
    assert client.attributes["error.type"] == failure.value.reason
    assert router.attributes["error.type"] == failure.value.reason
    (tried,) = [about for name, about in router.events if name == "anabranch.attempt"]
    assert tried["anabranch.outcome"] == failure.value.reason
    assert_nothing_private(s)


async def test_an_answer_that_goes_on_elsewhere_has_an_event_for_each_attempt(tmp_path):
    async with scene(tmp_path) as s:
        second = await s.running.add_engine(otlp_endpoint=s.collector.url)
        await s.running.backends_ready(3)
        engines = {e.host.instance_id: e for e in s.running.engines}
        for engine in engines.values():
            engine.simulation.slowdown = 20.0
        async with s.client.stream(
            model=MODEL, messages=PROMPT, max_tokens=100, ignore_eos=True
        ) as stream:
            await anext(stream)
            (lost,) = [b.backend_id for b in await s.running.backends() if b.in_flight]
            # As a crash: the listening server stops at once, without a farewell.
            await engines[lost].host._server.stop(0)
            for engine in engines.values():
                engine.simulation.slowdown = 1.0
            await stream.finish()
        (other,) = set(engines) - {lost}
        assert second.host.instance_id in engines
    _, router = chain(s.collector, "shop", ROUTER)
    assert not router.failed
    assert router.attributes["anabranch.resumes"] == 1
    attempts = [about for name, about in router.events if name == "anabranch.attempt"]
    assert [(a["anabranch.backend"], a["anabranch.outcome"]) for a in attempts] == [
        (lost, "BACKEND_LOST"),
        (other, "ok"),
    ]
    on = [span for span in s.collector.of(ENGINE) if not span.failed]
    (went_on,) = on
    assert went_on.parent == router.id
    assert went_on.attributes["anabranch.continued_tokens"] > 0
    assert_nothing_private(s)


async def test_a_caller_s_decision_to_sample_counts_before_the_ratio(tmp_path):
    async with scene(tmp_path, ratio=0.0) as s, s.running.channel(s.running.router) as channel:
        stub = model_stub(channel)
        others = "1" * 32
        for metadata in ([], [caller("00", others)], [caller("01")]):
            request = pb.GenerateRequest(model=MODEL, prompt=PROMPT)
            request.sampling.max_tokens = 2
            await stub.Generate(request, metadata=[*s.metadata, *metadata], timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(
                pb.GenerateRequest(model="none", prompt=PROMPT), metadata=s.metadata
            )
    router, engine = chain(s.collector, ROUTER, ENGINE)
    assert {span.trace for span in s.collector.spans} == {TRACE}
    assert (router.parent, engine.parent) == (CALLER, router.id)


@pytest.mark.vllm
@pytest.mark.timeout(900)
async def test_the_real_engine_is_in_the_trace_and_its_own_metrics_are_beside_ours(tmp_path):
    if not WEIGHTS.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    async with scene(tmp_path) as s:
        settings = engine_settings.Settings(
            **s.running.common("engine-vllm"),
            engine="vllm",
            model=str(WEIGHTS),
            served_model_name="river",
            max_num_seqs=8,
            max_model_len=1024,
            cpu_kv_cache_gib=1,
            otlp_endpoint=s.collector.url,
        )
        async with engine_app.running(settings) as host:
            await s.running.backends_ready(3)
            text = f"Repeat this word: {PROMPT}. " * 60  # more than one block of the cache
            for _ in range(2):
                await s.client.generate(model="river", messages=text, max_tokens=4)
            async with s.client.stream(model="river", messages=PROMPT, max_tokens=400) as stream:
                await anext(stream)
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://{host.http_address}/metrics") as response,
            ):
                shown = await response.text()
            headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://{host.http_address}/metrics", headers=headers) as response,
            ):
                openmetrics = await response.text()
    engine = [span for span in s.collector.of(ENGINE) if span.name == "chat river"]
    routed = {span.id: span for span in s.collector.of(ROUTER)}
    assert len(engine) == 3
    for span in engine:
        assert span.trace == routed[span.parent].trace
        assert span.attributes["anabranch.queue_seconds"] >= 0
        assert span.attributes["anabranch.prefill_seconds"] > 0
    assert engine[1].attributes["gen_ai.usage.cache_read.input_tokens"] > 0
    assert [span.attributes.get("error.type") for span in engine] == [None, None, "CANCELLED"]
    assert_nothing_private(s)
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(shown)
        for sample in family.samples
    }
    for name in VLLM_METRICS:
        assert name in values, name
    assert values["vllm:generation_tokens_total"] >= 8
    assert values["vllm:prefix_cache_hits_total"] > 0
    # The strict parser of the other format takes them, too.
    traced = [
        sample.exemplar.labels["trace_id"]
        for family in openmetrics_families(openmetrics)
        for sample in family.samples
        if sample.name == "gen_ai_server_time_to_first_token_seconds_bucket" and sample.exemplar
    ]
    assert set(traced) <= {span.trace for span in engine}
    assert traced


async def test_callers_cannot_have_more_traced_than_the_operator_allows(tmp_path):
    request = pb.GenerateRequest(model=MODEL, prompt=PROMPT, sampling=pb.Sampling(max_tokens=1))
    async with scene(tmp_path, 0.0, callers=0.001, callers_of_engines=0.0) as s:
        async with s.running.channel(s.running.router) as channel:
            stub = model_stub(channel)
            for trace in (TRACE, "1" * 32, "2" * 32):
                await stub.Generate(request, metadata=[*s.metadata, caller(trace=trace)])
        async with s.running.channel(s.running.engines[0].host) as channel:
            await model_stub(channel).Generate(
                request, metadata=[*s.metadata, caller(trace="3" * 32)]
            )
    router, engine = chain(s.collector, ROUTER, ENGINE)
    assert router.trace == engine.trace == TRACE, "an engine takes what its router has decided"
