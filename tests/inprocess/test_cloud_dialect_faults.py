"""Every fault of the provider simulator in each dialect, and exactly what the caller sees."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Work, reason_name
from tests.support.cloud import Proxy, ask
from tests.support.dialect_routes import DIALECTS, KEYS, PROFILES, speaking

# No timer ends what a slow machine takes long for; the wait before a repeat is no timer.
PATIENT: dict[str, Any] = {
    "connect_timeout": 60.0,
    "first_token_timeout": 60.0,
    "inter_token_timeout": 60.0,
    "longest_retry_wait": 0.5,
}
# Only the timer that a fault is for is short.
NOTHING = {"first_token_timeout": 0.8}
NO_MORE = {"inter_token_timeout": 1.5}
BILLED, SEEN, FREE = Work.MAYBE_BILLED, Work.OUTPUT_SEEN, Work.NOT_DISPATCHED
P, U = "PROVIDER_ERROR", "UNAVAILABLE"
WELL = ("OK", "STOP", 18)
TOO_LONG = {"message": "prompt is too long: 9 tokens > 8 maximum"}


async def outcome(proxy: Proxy, dialect: str, kind: str = "chat") -> tuple[Any, ...]:
    """What a stream came to: ("OK", finish, pieces) or (reason, code, work, pieces)."""
    chunks, ended = await proxy.chunks(ask(model=f"{kind}-of-{dialect}"))
    # The simulator sends a word at a time; pieces that come together share a chunk.
    pieces = sum(len(c.text.split()) for c in chunks)
    if ended is None:
        return "OK", pb.FinishReason.Name(chunks[-1].finish_reason)[14:], pieces
    return reason_name(ended.reason), ended.code.name, ended.work, pieces


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("kind", "params", "timers", "expected"),
    [
        ("slow_headers", {"seconds": 60}, NOTHING, (P, U, BILLED, 0)),
        ("hang", {}, NOTHING, (P, U, BILLED, 0)),
        ("hang_after_headers", {}, NOTHING, (P, U, BILLED, 0)),
        ("trickle", {"seconds": 60}, NOTHING, (P, U, BILLED, 0)),
        ("stall", {"after": 0}, NOTHING, (P, U, BILLED, 0)),
        ("stall", {"after": 3}, NO_MORE, (P, U, SEEN, 3)),
        ("keepalive_only", {}, NOTHING, (P, U, BILLED, 0)),
        ("keepalive_stall", {}, NO_MORE, (P, U, SEEN, 2)),
    ],
)
async def test_fault_that_a_timer_ends(tmp_path, dialect, kind, params, timers, expected):
    await check_fault(tmp_path, dialect, kind, params, {**PATIENT, **timers}, expected, 1)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("kind", "params", "expected", "sent"),
    [
        ("slow_headers", {"seconds": 0.1}, WELL, 1),
        ("trickle", {"seconds": 0.01}, WELL, 1),
        ("cut", {"after": 4}, (P, U, SEEN, 4), 1),
        ("cut_mid_event", {"after": 4}, (P, U, SEEN, 4), 1),
        ("cut_mid_event", {"after": 0}, (P, U, BILLED, 0), 1),
        ("garbage", {"after": 2}, (P, U, SEEN, 2), 1),
        ("garbage", {"after": 0}, (P, U, BILLED, 0), 1),
        ("error_after_200", {"after": 2}, (P, U, SEEN, 2), 1),
        ("5xx", {}, WELL, 2),
        ("5xx", {"status": 500}, WELL, 2),
        ("5xx", {"retry_after": 60}, (P, U, BILLED, 0), 1),
        ("529", {"retry_after": 0.05}, WELL, 2),
        ("429", {"retry_after_ms": 50}, WELL, 2),
        ("429", {"x_ms_retry_after_ms": 50}, WELL, 2),
        ("429", {"retry_after": 7}, (P, "RESOURCE_EXHAUSTED", FREE, 0), 1),
        ("429", {"retry_after_date": 70}, (P, "RESOURCE_EXHAUSTED", FREE, 0), 1),
        ("4xx", {"status": 400}, ("INVALID_REQUEST", "INVALID_ARGUMENT", FREE, 0), 1),
        ("4xx", TOO_LONG, ("CONTEXT_LENGTH_EXCEEDED", "OUT_OF_RANGE", FREE, 0), 1),
        ("4xx", {"status": 401}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 402}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 403}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 404}, (P, U, FREE, 0), 1),
        ("no_done", {}, (P, U, SEEN, 18), 1),
        ("no_finish", {}, (P, U, SEEN, 18), 1),
        ("finish", {"reason": "never_heard_of"}, (P, U, SEEN, 18), 1),
        ("wrong_content_type", {}, (P, U, BILLED, 0), 1),
        ("wrong_content_type", {"type": "application/json"}, (P, U, BILLED, 0), 1),
        ("giant_line", {}, (P, U, BILLED, 0), 1),
        ("duplicate_usage", {}, WELL, 1),
        ("no_usage", {}, WELL, 1),
        ("redirect", {}, (P, U, FREE, 0), 1),
        ("rate_limit_headers", {"headers": {"x-ratelimit-remaining-requests": "0"}}, WELL, 1),
    ],
)
async def test_fault(tmp_path, dialect, kind, params, expected, sent):
    await check_fault(tmp_path, dialect, kind, params, PATIENT, expected, sent)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("kind", "params", "timers", "expected", "sent"),
    [
        ("cut", {}, {}, (P, U, BILLED, 0), 1),
        ("cut_mid_event", {}, {}, (P, U, BILLED, 0), 1),
        ("garbage", {}, {}, (P, U, BILLED, 0), 1),
        # It has failed before any of it was passed on.
        ("no_finish", {}, {}, (P, U, BILLED, 0), 1),
        ("finish", {"reason": "never_heard_of"}, {}, WELL, 2),
        ("stall", {}, NOTHING, (P, U, BILLED, 0), 1),
        ("keepalive_stall", {}, NOTHING, (P, U, BILLED, 0), 1),
        ("hang_after_headers", {}, NOTHING, (P, U, BILLED, 0), 1),
        ("no_usage", {}, {}, WELL, 1),
        ("no_done", {}, {}, WELL, 1),
    ],
)
async def test_fault_of_an_answer_that_does_not_stream(
    tmp_path, dialect, kind, params, timers, expected, sent
):
    timers = {**PATIENT, **timers}
    await check_fault(tmp_path, dialect, kind, params, timers, expected, sent, model="whole")


@pytest.mark.skipif("gemini" not in DIALECTS, reason="no codec for it")
async def test_gemini_says_in_the_body_when_to_come_back(tmp_path):
    async with speaking(tmp_path, "gemini", **PATIENT) as proxy:
        await proxy.provider.fault("429", retry_info=7)
        _, ended = await proxy.chunks(ask(model="chat-of-gemini"))
        assert ended is not None
        assert (ended.code.name, ended.work, ended.retry_after) == ("RESOURCE_EXHAUSTED", FREE, 7)


async def check_fault(tmp_path, dialect, kind, params, timers, expected, sent, model="chat"):
    async with speaking(tmp_path, dialect, **timers) as proxy:
        await proxy.provider.fault(kind, **params)
        assert await outcome(proxy, dialect, model) == expected
        state = await proxy.provider.state()
        assert state["dialects"][dialect] == state["seen"] == sent
        # Whatever happened, nothing is left open at the provider.
        await proxy.provider.until(lambda s: s["open"] == 0)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_error_within_a_stream_before_any_output_is_asked_again(tmp_path, dialect):
    # An error that a dialect has for an overload may mean a wait that is longer than others.
    async with speaking(tmp_path, dialect, **{**PATIENT, "longest_retry_wait": 5.0}) as proxy:
        await proxy.provider.fault("error_after_200")
        assert await outcome(proxy, dialect) == WELL
        assert (await proxy.provider.state())["seen"] == 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_usage_stated_thrice_is_counted_once(tmp_path, dialect):
    async with speaking(tmp_path, dialect, **PATIENT) as proxy:
        clean = (await proxy.answer(ask(model=f"chat-of-{dialect}"))).usage
        await proxy.provider.fault("duplicate_usage")
        assert (await proxy.answer(ask(model=f"chat-of-{dialect}"))).usage == clean
        await proxy.provider.fault("no_usage")
        estimated = (await proxy.answer(ask(model=f"chat-of-{dialect}"))).usage
        assert estimated.source == pb.Usage.SOURCE_ESTIMATED


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_giant_answer_of_proper_events_is_capped(tmp_path, dialect):
    async with speaking(tmp_path, dialect, max_response_bytes=1 << 20) as proxy:
        await proxy.provider.fault("giant_response")
        _, ended = await proxy.chunks(ask(model=f"chat-of-{dialect}"))
        assert ended is not None
        assert (reason_name(ended.reason), ended.code.name, ended.work) == (P, U, SEEN)


@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - {"ollama"}))  # it asks for no key
async def test_unknown_key_is_our_fault_and_is_never_quoted(tmp_path, dialect):
    async with speaking(tmp_path, dialect, accepted=("another-key", "AKIDOTHER:s")) as proxy:
        _, ended = await proxy.chunks(ask(model=f"chat-of-{dialect}"))
        assert ended is not None
        assert (reason_name(ended.reason), ended.code.name, ended.work) == (P, U, FREE)
        for part in KEYS[PROFILES[dialect]].split(":"):
            assert part not in ended.message + repr(ended.metadata)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_caller_that_leaves_closes_the_providers_socket(tmp_path, dialect):
    async with speaking(tmp_path, dialect, **PATIENT) as proxy:
        await proxy.provider.fault("stall")
        call = proxy.stub.StreamGenerate(ask(model=f"chat-of-{dialect}"), metadata=proxy.metadata)
        await call.read()
        call.cancel()
        await proxy.provider.until(lambda s: s["open"] == 0 and s["aborted"] == 1)
