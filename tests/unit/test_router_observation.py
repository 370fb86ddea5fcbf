"""What is told of a request that has ended: its receipt, its measurements, its trace."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from opentelemetry.trace import NoOpTracer

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis import telemetry
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext
from services.chassis.principal import Principal
from services.chassis.tracing import RequestTracer
from services.router.core.values import Dispatch, Overflow, Tier
from services.router.observation import Observer
from services.router.receipt import ReceiptBuilder, write_seconds

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTEXT = CallContext(
    Principal("client", "tenant", frozenset(), 0.0, "t"), "r-1", 1000.0, TRACEPARENT
)
REQUEST = pb.GenerateRequest(model="m", prompt="p")


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def last_chunk() -> pb.GenerateChunk:
    chunk = pb.GenerateChunk(finish_reason=pb.FINISH_REASON_STOP)
    chunk.usage.prompt_tokens, chunk.usage.completion_tokens = 7, 3
    return chunk


def test_a_receipt_tells_of_every_attempt_and_the_times():
    clock = Clock()
    receipt = ReceiptBuilder(clock)
    clock.now += 0.25
    receipt.dispatched(Dispatch("a", Tier.LOCAL, 0.5, None))
    clock.now += 1.5
    receipt.first_chunk()
    receipt.attempt_failed("BACKEND_LOST")
    receipt.resuming_at(4)
    clock.now += 1.0
    receipt.dispatched(Dispatch("b", Tier.CLOUD, 9.0, Overflow.FAILED))
    clock.now += 2.0
    chunk = last_chunk()
    chunk.receipt.cost_microusd = 12
    chunk.receipt.backend_id = "what the backend says of itself"
    chunk.receipt.attempts.add(backend_id="of its own")
    receipt.complete(chunk, "served")
    told = chunk.receipt
    assert (told.tier, told.backend_id, told.cost_microusd) == (pb.TIER_CLOUD, "b", 12)
    assert told.served_model == "served"
    assert told.overflow_reason == pb.OVERFLOW_REASON_FAILED
    assert list(told.resumed_at_tokens) == [4]
    assert told.queue_time.ToMilliseconds() == 250
    assert told.ttft.ToMilliseconds() == 1750
    # Of the attempt that brought the first chunk.
    assert told.predicted_ttft.ToMilliseconds() == 500
    attempts = [
        (a.backend_id, a.tier, a.error_reason, a.duration.ToMilliseconds()) for a in told.attempts
    ]
    assert attempts == [
        ("a", pb.TIER_LOCAL, "BACKEND_LOST", 1500),
        ("b", pb.TIER_CLOUD, "", 2000),
    ]


def test_what_was_never_sent_has_a_receipt_without_attempts():
    chunk = last_chunk()
    ReceiptBuilder(Clock()).complete(chunk, "")
    assert chunk.HasField("receipt")
    assert (chunk.receipt.tier, list(chunk.receipt.attempts)) == (pb.TIER_UNSPECIFIED, [])
    assert not chunk.receipt.HasField("ttft")


@pytest.mark.parametrize(
    ("seconds", "nanoseconds"),
    [(0.0, 0), (-1.0, 0), (0.25, 250_000_000), (61.5, 61_500_000_000)],
)
def test_seconds_replace_what_a_duration_held(seconds, nanoseconds):
    request = pb.GenerateRequest()
    request.timeout.FromSeconds(5)
    write_seconds(request.timeout, seconds)
    assert request.HasField("timeout")
    assert request.timeout.ToNanoseconds() == nanoseconds


UNTRACED = RequestTracer(NoOpTracer(), recording=False)


@pytest.mark.parametrize("recording", [False, True])
async def test_a_finished_request_is_counted_by_model_and_tier(recording):
    one = telemetry.open("router", "1")
    observer = Observer(one.meter, RequestTracer(one.tracer, recording=recording))
    for _ in range(2):
        receipt = ReceiptBuilder(Clock())
        receipt.dispatched(Dispatch("a", Tier.LOCAL, 0.5, Overflow.SATURATED))
        receipt.first_chunk()
        observer.begin(REQUEST, CONTEXT).finished(last_chunk(), receipt)
    observer.begin(REQUEST, CONTEXT).failed(Fault(errors_pb2.ERROR_REASON_NO_BACKEND, "none"))
    text = one.prometheus_text()
    labels = 'anabranch_tier="local",gen_ai_request_model="m"'
    for line in (
        f"gen_ai_server_request_duration_seconds_count{{{labels}}} 2.0",
        f"gen_ai_server_time_to_first_token_seconds_count{{{labels}}} 2.0",
        f"gen_ai_server_time_per_output_token_seconds_count{{{labels}}} 2.0",
        f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="input"}} 14.0',
        f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}} 6.0',
        'anabranch_router_overflows_total{gen_ai_request_model="m",reason="saturated"} 2.0',
        'anabranch_router_failures_total{error_type="NO_BACKEND"} 1.0',
        f'anabranch_router_requests_total{{{labels},outcome="ok"}} 2.0',
        'anabranch_router_requests_total{anabranch_tier="unspecified",gen_ai_request_model="m",'
        'outcome="error"} 1.0',
    ):
        assert line in text
    await one.close()


async def test_a_trace_goes_on_with_a_span_of_the_router_or_past_it():
    one = telemetry.open("router", "1")
    tracer = RequestTracer(one.tracer, recording=True)
    recorded = Observer(one.meter, tracer).begin(REQUEST, CONTEXT).traceparent
    assert recorded.split("-")[1] == TRACEPARENT.split("-")[1]
    assert recorded.split("-")[2] != TRACEPARENT.split("-")[2]
    assert Observer(one.meter, UNTRACED).begin(REQUEST, CONTEXT).traceparent == TRACEPARENT
    await one.close()


async def test_a_cancelled_request_and_one_whose_time_ran_out_are_told_apart():
    one = telemetry.open("router", "1")
    observer = Observer(one.meter, UNTRACED)
    left = pb.GenerateChunk(finish_reason=pb.FINISH_REASON_CANCELLED)
    for deadline in (time.monotonic() + 3600.0, time.monotonic() - 1.0):
        context = replace(CONTEXT, deadline=deadline)
        receipt = ReceiptBuilder(Clock())
        receipt.dispatched(Dispatch("a", Tier.LOCAL, 0.5, None))
        observer.begin(REQUEST, context).finished(left, receipt)
    text = one.prometheus_text()
    series = 'anabranch_router_requests_total{anabranch_tier="local",gen_ai_request_model="m"'
    for outcome, count in (("ok", 0), ("cancelled", 1), ("error", 1)):
        assert f'{series},outcome="{outcome}"}} {count}.0' in text
    await one.close()


async def test_names_that_nobody_serves_are_one_model():
    one = telemetry.open("router", "1")
    observer = Observer(one.meter, UNTRACED, is_served=lambda name: name == "m")

    def lines() -> int:
        return len(one.prometheus_text().splitlines())

    fault = Fault(errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, "none")
    observer.begin(pb.GenerateRequest(model="made up"), CONTEXT).failed(fault)
    before = lines()
    for number in range(5000):
        observer.begin(pb.GenerateRequest(model=f"made up {number}"), CONTEXT).failed(fault)
    assert lines() == before
    assert 'gen_ai_request_model="unknown",outcome="error"} 5001.0' in one.prometheus_text()
    await one.close()


async def test_a_request_that_failed_or_left_its_first_choice_is_found_by_its_id(caplog):
    caplog.set_level("INFO", logger="services.router.observation")
    one = telemetry.open("router", "1")
    observer = Observer(one.meter, UNTRACED)
    receipt = ReceiptBuilder(Clock())
    receipt.dispatched(Dispatch("a", Tier.LOCAL, 0.5, None))
    receipt.first_chunk()
    observer.begin(REQUEST, CONTEXT).finished(last_chunk(), receipt)
    assert caplog.records == []

    receipt = ReceiptBuilder(Clock())
    receipt.dispatched(Dispatch("c", Tier.CLOUD, 0.5, Overflow.UNHEALTHY))
    receipt.first_chunk()
    observer.begin(REQUEST, CONTEXT).finished(last_chunk(), receipt)
    words = Fault(
        errors_pb2.ERROR_REASON_PROVIDER_ERROR, "it quotes the prompt", metadata={"provider": "p"}
    )
    observer.begin(REQUEST, CONTEXT).failed(words)
    left, failed = (vars(record) for record in caplog.records)
    for told in (left, failed):
        assert told["request_id"] == "r-1"
        assert told["trace_id"] == TRACEPARENT.split("-")[1]
    assert (left["tier"], left["backend"], left["overflow"]) == ("cloud", "c", "unhealthy")
    assert (failed["reason"], failed["cause"]) == ("PROVIDER_ERROR", "")
    await one.close()
