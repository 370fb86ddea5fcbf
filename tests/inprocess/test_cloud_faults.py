"""Every fault that the provider simulator can have, and exactly what the caller then sees."""

import asyncio
import socket
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Work, reason_name
from tests.support.cloud import Proxy, ask, cloud_proxy

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


async def outcome(proxy: Proxy, request=None) -> tuple[Any, ...]:
    """What a stream came to: ("OK", finish, pieces) or (reason, code, work, pieces)."""
    chunks, ended = await proxy.chunks(request or ask())
    # The simulator sends a word at a time; pieces that come together share a chunk.
    pieces = sum(len((c.text + c.reasoning).split()) for c in chunks)
    if ended is None:
        return "OK", pb.FinishReason.Name(chunks[-1].finish_reason)[14:], pieces
    if pieces:
        assert ended.metadata["tokens_delivered"] == str(pieces)
    return reason_name(ended.reason), ended.code.name, ended.work, pieces


@pytest.mark.parametrize(
    ("kind", "params", "timers", "expected", "sent"),
    [
        ("slow_headers", {"seconds": 0.1}, {}, ("OK", "STOP", 18), 1),
        ("slow_headers", {"seconds": 60}, NOTHING, (P, U, BILLED, 0), 1),
        ("trickle", {"seconds": 0.01}, {}, ("OK", "STOP", 18), 1),
        ("trickle", {"seconds": 60}, NOTHING, (P, U, BILLED, 0), 1),
        ("stall", {"after": 3}, NO_MORE, (P, U, SEEN, 3), 1),
        ("stall", {"after": 0}, NOTHING, (P, U, BILLED, 0), 1),
        ("keepalive_only", {}, NOTHING, (P, U, BILLED, 0), 1),
        ("keepalive_stall", {}, NO_MORE, (P, U, SEEN, 2), 1),
        ("hang", {}, NOTHING, (P, U, BILLED, 0), 1),
    ],
)  # fmt: skip
async def test_fault_that_a_timer_ends(tmp_path, kind, params, timers, expected, sent):
    await check_fault(tmp_path, kind, params, {**PATIENT, **timers}, expected, sent)


@pytest.mark.parametrize(
    ("kind", "params", "expected", "sent"),
    [
        ("cut", {"after": 4}, (P, U, SEEN, 4), 1),
        ("garbage", {"after": 2}, (P, U, SEEN, 2), 1),
        ("garbage", {"after": 0}, (P, U, BILLED, 0), 1),
        ("error_after_200", {}, ("OK", "STOP", 18), 2),
        ("error_after_200", {"after": 2}, (P, U, SEEN, 2), 1),
        ("5xx", {}, ("OK", "STOP", 18), 2),
        ("5xx", {"status": 500}, ("OK", "STOP", 18), 2),
        ("5xx", {"status": 529, "retry_after": 0.05}, ("OK", "STOP", 18), 2),
        ("5xx", {"retry_after": 60}, (P, U, BILLED, 0), 1),
        ("5xx", {"should_retry": False}, (P, U, BILLED, 0), 1),
        ("429", {"retry_after_ms": 50}, ("OK", "STOP", 18), 2),
        ("429", {"x_ms_retry_after_ms": 50}, ("OK", "STOP", 18), 2),
        ("429", {"retry_after": 7}, (P, "RESOURCE_EXHAUSTED", FREE, 0), 1),
        ("429", {"code": "insufficient_quota"}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 400}, ("INVALID_REQUEST", "INVALID_ARGUMENT", FREE, 0), 1),
        ("4xx", {"status": 422}, ("INVALID_REQUEST", "INVALID_ARGUMENT", FREE, 0), 1),
        ("4xx", {"code": "context_length_exceeded"},
         ("CONTEXT_LENGTH_EXCEEDED", "OUT_OF_RANGE", FREE, 0), 1),
        ("4xx", {"status": 402}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 403}, (P, U, FREE, 0), 1),
        ("4xx", {"status": 404}, (P, U, FREE, 0), 1),
        ("no_done", {}, (P, U, SEEN, 18), 1),
        ("no_finish", {}, (P, U, SEEN, 18), 1),
        ("finish", {"reason": "never_heard_of"}, (P, U, SEEN, 18), 1),
        ("finish", {"reason": "network_error"}, (P, U, SEEN, 18), 1),
        ("finish", {"reason": "sensitive"}, ("OK", "CONTENT_FILTER", 18), 1),
        ("wrong_content_type", {}, (P, U, BILLED, 0), 1),
        ("wrong_content_type", {"type": "application/json"}, (P, U, BILLED, 0), 1),
        ("giant_line", {}, (P, U, BILLED, 0), 1),
        ("duplicate_usage", {}, ("OK", "STOP", 18), 1),
        ("no_usage", {}, ("OK", "STOP", 18), 1),
        ("redirect", {}, (P, U, FREE, 0), 1),
    ],
)  # fmt: skip
async def test_fault(tmp_path, kind, params, expected, sent):
    await check_fault(tmp_path, kind, params, PATIENT, expected, sent)


async def check_fault(tmp_path, kind, params, timers, expected, sent):
    async with cloud_proxy(tmp_path, **timers) as proxy:
        await proxy.provider.fault(kind, **params)
        assert await outcome(proxy) == expected
        assert (await proxy.provider.state())["seen"] == sent
        # Whatever happened, nothing is left open at the provider.
        await proxy.provider.until(lambda s: s["open"] == 0)


async def test_next_request_after_a_fault_goes_well(tmp_path):
    async with cloud_proxy(tmp_path, **PATIENT | NO_MORE) as proxy:
        for kind in ("cut", "garbage", "giant_line", "no_done", "wrong_content_type", "stall"):
            await proxy.provider.fault(kind)
            assert (await outcome(proxy))[0] == P
            assert (await outcome(proxy))[0] == "OK"


async def test_usage_stated_three_times_is_counted_once_and_never_stated_is_estimated(tmp_path):
    async with cloud_proxy(tmp_path) as proxy:
        clean = (await proxy.answer(ask())).usage
        await proxy.provider.fault("duplicate_usage")
        assert (await proxy.answer(ask())).usage == clean
        await proxy.provider.fault("no_usage")
        estimated = (await proxy.answer(ask())).usage
        assert estimated.source == pb.Usage.SOURCE_ESTIMATED
        assert estimated.completion_tokens >= 18


async def test_giant_response_of_proper_events_is_capped(tmp_path):
    async with cloud_proxy(tmp_path, max_response_bytes=1 << 20) as proxy:
        await proxy.provider.fault("giant_response")
        _, ended = await proxy.chunks(ask())
        assert ended is not None
        assert (reason_name(ended.reason), ended.code.name, ended.work) == (P, U, SEEN)
        assert 0 < int(ended.metadata["tokens_delivered"]) < 1100


async def test_total_timer_ends_a_stream_that_keeps_trickling(tmp_path):
    async with cloud_proxy(tmp_path, **PATIENT, total_timeout=3.0) as proxy:
        await proxy.provider.fault("trickle", seconds=0.5)
        reason, code, work, pieces = await outcome(proxy)
        assert (reason, code, work) == (P, U, SEEN)
        assert 0 < pieces < 18


async def test_repeats_end_with_the_attempts(tmp_path):
    async with cloud_proxy(tmp_path, **PATIENT) as proxy:
        await proxy.provider.fault("5xx", count=10)
        assert await outcome(proxy) == (P, U, BILLED, 0)
        assert (await proxy.provider.state())["seen"] == 3


async def test_repeats_are_budgeted_when_a_provider_is_down(tmp_path):
    async with cloud_proxy(tmp_path, attempts=2, longest_retry_wait=0.05) as proxy:
        await proxy.provider.fault("5xx", count=1000)
        for _ in range(60):
            await proxy.chunks(ask())
        # 60 requests, 10 repeats saved up and one for each five requests.
        assert (await proxy.provider.state())["seen"] <= 60 + 10 + 12


async def test_limited_account_is_left_alone_and_callers_are_told_how_long(tmp_path):
    async with cloud_proxy(tmp_path, **PATIENT) as proxy:
        await proxy.provider.fault("429", retry_after=300)
        _, first = await proxy.chunks(ask())
        assert first.retry_after == 300
        _, second = await proxy.chunks(ask(model="cloud-reasoner"))
        assert second.code.name == "RESOURCE_EXHAUSTED"
        assert 0 < second.retry_after <= 300  # what is left of it
        assert (await proxy.provider.state())["seen"] == 1


async def test_provider_that_is_not_there(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with cloud_proxy(tmp_path, url=url, **PATIENT) as proxy:
            assert await outcome(proxy) == (P, U, FREE, 0)


async def test_provider_that_speaks_no_http(tmp_path):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with cloud_proxy(tmp_path, url=f"http://127.0.0.1:{port}", **PATIENT) as proxy:
            assert await outcome(proxy) == (P, U, BILLED, 0)


async def test_provider_whose_certificate_does_not_verify(tmp_path):
    # A plain server behind https: the handshake fails, and nothing of the request was sent.
    received = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with cloud_proxy(tmp_path, url=f"https://127.0.0.1:{port}", **PATIENT) as proxy:
            assert await outcome(proxy) == (P, U, FREE, 0)
    assert all(b"Bearer" not in data for data in received)
