"""Which requests have spans, under which parent, and what the next hop is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from anabranch.v1 import errors_pb2
from services.chassis import tracing
from services.chassis.caller_sampling import CallerSampling
from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.trace_context import (
    is_valid,
    passed_on,
    sampled_trace,
    trace_id_of,
    unsampled,
)
from services.chassis.tracing import RequestTracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
NONSENSE = [
    *("", "x", SAMPLED[:-3], "ff" + SAMPLED[2:], SAMPLED + "-x"),
    SAMPLED.upper().replace("-01", "-0Z"),
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    SAMPLED[:36] + "0" * 16 + "-01",
]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("test")


def test_who_records_no_spans_passes_the_caller_s_trace_on_as_it_is():
    assert passed_on(SAMPLED) == SAMPLED
    assert passed_on(UNSAMPLED) == UNSAMPLED
    assert unsampled(SAMPLED) == unsampled(UNSAMPLED) == UNSAMPLED
    assert unsampled(SAMPLED[:-2] + "fb") == SAMPLED[:-2] + "fa"


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_without_a_trace_of_the_caller_s_a_new_one_goes_on_that_is_not_sampled(nonsense: str):
    onward = passed_on(nonsense)
    assert is_valid(onward)
    assert not sampled_trace(onward)
    assert passed_on(nonsense) != onward
    assert trace_id_of(nonsense) == sampled_trace(nonsense) == ""


def test_a_caller_s_decision_counts_whatever_the_ratio(tracer: Tracer):
    never = RequestTracer(tracer, recording=True, ratio=0.0)
    always = RequestTracer(tracer, recording=True, ratio=1.0)
    assert never.parent_of(SAMPLED) is not None
    assert always.parent_of(UNSAMPLED) is None
    assert RequestTracer(tracer, recording=False).parent_of(SAMPLED) is None


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_of_those_without_one_a_share_is_sampled(tracer: Tracer, nonsense: str):
    drawn = iter([0.1, 0.3])
    one = RequestTracer(tracer, recording=True, ratio=0.25, chance=lambda: next(drawn))
    assert one.parent_of(nonsense) is not None
    assert one.parent_of(nonsense) is None
    assert RequestTracer(tracer, recording=True, ratio=0.0).parent_of(nonsense) is None
    assert RequestTracer(tracer, recording=True, ratio=1.0).parent_of(nonsense) is not None


def test_a_span_hangs_under_the_caller_s_and_the_next_hop_under_it(
    tracer: Tracer, spans: InMemorySpanExporter
):
    one = RequestTracer(tracer, recording=True)
    parent = one.parent_of(SAMPLED)
    assert parent is not None
    span = one.start("chat m", parent, SpanKind.SERVER, {})
    onward = tracing.traceparent_of(span)
    span.end()
    (told,) = spans.get_finished_spans()
    assert told.parent is not None
    assert (f"{told.parent.trace_id:032x}", f"{told.parent.span_id:016x}") == (TRACE, PARENT)
    assert onward == f"00-{TRACE}-{told.get_span_context().span_id:016x}-01"


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (Fault(errors_pb2.ERROR_REASON_NO_BACKEND, "all are busy"), "NO_BACKEND", "all are busy"),
        (Fault(errors_pb2.ERROR_REASON_INVALID_REQUEST, "not 'secret'"), "INVALID_REQUEST", None),
        (
            Fault(errors_pb2.ERROR_REASON_PROVIDER_ERROR, "secret", metadata={"provider": "p"}),
            "PROVIDER_ERROR",
            None,
        ),
    ],
)
def test_a_small_call_that_fails_says_why_but_quotes_nobody(
    tracer: Tracer, spans: InMemorySpanExporter, fault: Fault, reason: str, words: str | None
):
    small = RequestTracer(tracer, recording=True).call("embeddings m", SAMPLED, dict)
    with pytest.raises(Fault), small:
        raise fault
    (span,) = spans.get_finished_spans()
    assert span.attributes == {"error.type": reason}
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, words)
    assert not span.events


def test_callers_have_so_many_requests_traced_a_second_and_relays_all() -> None:
    now = 100.0
    shop = Principal("shop", "shop", frozenset({"generate"}), 2e9, "t")
    sampling = CallerSampling(3, lambda: now)

    def traced(caller: Principal = shop) -> int:
        return sum(sampling.taken(SAMPLED, caller) == SAMPLED for _ in range(10))

    assert (traced(), traced()) == (3, 0)
    assert sampling.taken(SAMPLED, shop) == UNSAMPLED
    now += 0.34
    assert traced() == 1
    now += 3600
    assert traced() == 3, "what nobody used is not saved up"
    for left in ("", "x", UNSAMPLED):
        assert sampling.taken(left, shop) == left
    router = Principal("router", "operators", frozenset({"relay"}), 2e9, "t")
    assert traced(router) == traced(replace(shop, relayed_by="router")) == 10
    assert CallerSampling(0, lambda: now).taken(SAMPLED, shop) == UNSAMPLED
    seldom = CallerSampling(0.1, lambda: now)
    assert [seldom.taken(SAMPLED, shop) for _ in range(2)] == [SAMPLED, UNSAMPLED]
    now += 10
    assert seldom.taken(SAMPLED, shop) == SAMPLED
