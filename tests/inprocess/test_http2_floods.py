"""Attacks on our HTTP/2 by raw frames: how each ends, and that a proper caller notices none.

Each runs against a server that a grpc.aio channel is calling meanwhile, on a connection of its
own; afterwards the server holds nothing of the attacker: no stream, no task, no byte.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.frames import Code
from services.chassis.http2.server import Server
from tests.support.raw_http2 import (
    BOUND_S,
    Peer,
    is_empty,
    message,
    only_for_new_connections,
    peer,
    request,
    serving,
    until,
)


class Target:
    """A server, how often its handlers were begun, and a caller that must notice nothing."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.calls = 0
        self.begun: list[str] = []

    def attacker(self, *, greet: bool = True) -> Any:
        return peer(self.port, greet=greet)

    def streams(self) -> int:
        return sum(len(one.streams) for one in self.server._connections)


@asynccontextmanager
async def target(**limits: Any) -> AsyncIterator[Target]:
    async def echo(body: bytes, context: Any) -> bytes:
        return body

    async def wait(_: Any, context: Any) -> bytes:
        one.begun.append("wait")
        await asyncio.Event().wait()
        return b""

    async def large(body: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(body)):
            yield bytes(60_000)

    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Wait": grpc.stream_unary_rpc_method_handler(wait),
        "Large": grpc.unary_stream_rpc_method_handler(large),
    }
    async with serving(methods) as (server, port):
        one = Target(server, port)

        async def call() -> None:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                echoed = channel.unary_unary("/t.T/Echo")
                while True:
                    assert await echoed(b"well", timeout=BOUND_S) == b"well"
                    one.calls += 1
                    await asyncio.sleep(0.001)

        caller = asyncio.create_task(call())
        try:
            await until(lambda: one.calls > 0)
            only_for_new_connections(server, **limits)
            yield one
            before = one.calls
            await until(lambda: one.calls > before or caller.done())
            assert not caller.done(), caller
        finally:
            caller.cancel()
            await asyncio.wait([caller])
        await is_empty(server)


@pytest.fixture
async def at() -> AsyncIterator[Target]:
    async with target() as one:
        yield one


@pytest.fixture
def nothing_is_forgiven(monkeypatch):
    """What is allowed anew every second would let a flood pass that a slow machine takes slowly."""
    monkeypatch.setattr("services.chassis.http2.abuse._PER_SECOND", 0.0)


def block(encoded: bytes) -> bytes:
    """HEADERS of stream 1, with nothing put before them."""
    return h2.pack(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, encoded)


def settings(count: int = 1) -> bytes:
    return h2.pack(h2.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535) * count)


# What is no HTTP/2, or breaks it: the connection ends, with the code that the RFC names


P, F, S, C = "PROTOCOL_ERROR", "FRAME_SIZE_ERROR", "FLOW_CONTROL_ERROR", "COMPRESSION_ERROR"
CALM = "ENHANCE_YOUR_CALM"
OPENED = h2.headers(1, request("/t.T/Wait"), end_stream=False)
HEAD_ONLY = h2.pack(h2.HEADERS, 0, 1, request("/t.T/Wait"))  # its block is not over


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", P),  # TLS
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", P),
        (bytes(range(256)), P),
        (h2.PREFACE[:20] + b"!!!!" + bytes(40), P),
        (h2.PREFACE + OPENED, P),
        (h2.PREFACE + h2.pack(h2.SETTINGS, h2.ACK, 0), P),
        (h2.PREFACE + h2.pack(h2.CONTINUATION, 0, 1), P),
        (h2.PREFACE + b"\xff" * 100, F),
    ],
)
async def test_what_is_no_http2_is_ended(at, wire, code):
    async with at.attacker(greet=False) as attacker:
        attacker.send(wire)
        assert (await attacker.ended_with())[0] == code
        await is_empty(at.server, connections=1)


WRONG = [
    ("data on no stream", h2.pack(h2.DATA, 0, 0, b"x"), P),
    ("data on an idle stream", h2.pack(h2.DATA, 0, 5, b"x"), P),
    ("data on an even stream", h2.pack(h2.DATA, 0, 2, b"x"), P),
    ("more padding than data", OPENED + h2.pack(h2.DATA, h2.PADDED, 1, b"\x05abc"), P),
    ("headers on no stream", h2.headers(0, request(), end_stream=True), P),
    ("headers on an even stream", h2.headers(2, request(), end_stream=True), P),
    ("headers cut short", h2.pack(h2.HEADERS, h2.HAS_PRIORITY | h2.END_HEADERS, 1, b"123"), P),
    ("headers that are garbage", block(b"\xfe\xff\xff"), C),
    ("headers that resize", block(b"\x3f\xe1\x1f" * 5000), C),
    ("an HPACK bomb", block(b"\x40\x01a\x7e" + b"x" * 126 + b"\xbe" * 9000), CALM),
    ("a reset of an idle stream", h2.reset(7, Code.CANCEL), P),
    ("a reset of no stream", h2.reset(0, Code.CANCEL), P),
    ("a reset of a wrong size", OPENED + h2.pack(h2.RST_STREAM, 0, 1, b"123"), F),
    ("a priority of no stream", h2.pack(h2.PRIORITY, 0, 0, bytes(5)), P),
    ("a push", h2.pack(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(4)), P),
    ("settings of a stream", h2.pack(h2.SETTINGS, 0, 1), P),
    ("settings of odd length", h2.pack(h2.SETTINGS, 0, 0, b"12345"), F),
    ("an acknowledgement with settings", h2.pack(h2.SETTINGS, h2.ACK, 0, bytes(6)), F),
    ("an initial window too wide", h2.settings({h2.INITIAL_WINDOW_SIZE: 2**31}), S),
    ("a frame size too small", h2.settings({h2.MAX_FRAME_SIZE: 1}), P),
    ("a push setting that is none", h2.settings({h2.ENABLE_PUSH: 2}), P),
    ("a ping of a stream", h2.pack(h2.PING, 0, 1, bytes(8)), P),
    ("a ping of a wrong size", h2.pack(h2.PING, 0, 0, bytes(7)), F),
    ("a goaway of a stream", h2.pack(h2.GOAWAY, 0, 1, bytes(8)), P),
    ("a goaway cut short", h2.pack(h2.GOAWAY, 0, 0, bytes(7)), F),
    ("a connection window of nothing", h2.window_update(0, 0), P),
    ("a connection window too wide", h2.window_update(0, 2**31 - 1), S),
    ("a window of an idle stream", h2.window_update(9, 1), P),
    ("a window of a wrong size", h2.pack(h2.WINDOW_UPDATE, 0, 0, b"123"), F),
    (
        "an initial window that widens a stream's too far",
        OPENED + h2.window_update(1, 2**31 - 1 - 65_535) + h2.settings({4: 65_536}),
        S,
    ),
    ("a frame too large", h2.pack(h2.DATA, 0, 1, bytes(16_385)), F),
    ("a block that is interrupted", HEAD_ONLY + h2.pack(h2.PING, 0, 0, bytes(8)), P),
    ("a block continued elsewhere", HEAD_ONLY + h2.pack(h2.CONTINUATION, 4, 3, b""), P),
    ("a continuation of nothing", OPENED + h2.pack(h2.CONTINUATION, 4, 1, b""), P),
    ("a block without an end", HEAD_ONLY + h2.pack(h2.CONTINUATION, 0, 1, b"x" * 900) * 40, CALM),
    ("a block of empty parts", HEAD_ONLY + h2.pack(h2.CONTINUATION, 0, 1) * 2100, CALM),
]


@pytest.mark.usefixtures("nothing_is_forgiven")
@pytest.mark.parametrize(("wire", "code"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
async def test_what_breaks_the_protocol_ends_the_connection(at, wire, code):
    async with at.attacker() as attacker:
        attacker.send(wire)
        assert (await attacker.ended_with())[0] == code
        await is_empty(at.server, connections=1)


async def test_a_connection_that_says_nothing_is_closed():
    async with target(opening=0.05) as at:
        async with (
            at.attacker(greet=False) as silent,
            at.attacker(greet=False) as slow,
            at.attacker(greet=False) as half,
        ):
            slow.send(h2.PREFACE[:5])
            half.send(h2.PREFACE)
            for one in (silent, slow, half):
                assert (await one.ended_with())[0] == "SETTINGS_TIMEOUT"
        await is_empty(at.server, connections=1)


async def test_many_idle_connections_are_closed_in_time(monkeypatch):
    monkeypatch.setattr("services.chassis.http2.outgoing._CLOSE_PATIENCE_S", 0.05)
    async with target(opening=0.05, ping_every=0.1, ping_answer=0.1) as at:
        idle = [await asyncio.open_connection("127.0.0.1", at.port) for _ in range(100)]
        for _, writer in idle[:50]:
            writer.write(h2.PREFACE + h2.settings({}))
        for reader, writer in idle:
            await reader.read()  # to the end, which the server has to bring about
            writer.transport.abort()
        await is_empty(at.server, connections=1)


# What breaks one stream: that stream ends, and the connection goes on


STREAM_FAULTS = [
    ("a window of nothing", h2.window_update(1, 0), P),
    ("a window too wide", h2.window_update(1, 2**31 - 1), S),
    ("a priority of a wrong size", h2.pack(h2.PRIORITY, 0, 1, b"1234"), F),
    ("headers twice", h2.headers(1, request(), end_stream=False), P),
    (
        "data after the end",
        h2.pack(h2.DATA, h2.END_STREAM, 1) + h2.pack(h2.DATA, 0, 1, b"x"),
        "STREAM_CLOSED",
    ),
    (
        "trailers after the end",
        h2.pack(h2.DATA, 1, 1) + h2.headers(1, b"", end_stream=True),
        "STREAM_CLOSED",
    ),
    ("data beyond the window", h2.pack(h2.DATA, 0, 1, message(bytes(16_379))) * 17, S),
]


@pytest.mark.parametrize(
    ("wire", "code"), [w[1:] for w in STREAM_FAULTS], ids=[w[0] for w in STREAM_FAULTS]
)
async def test_what_breaks_a_stream_resets_it_alone(at, wire, code):
    async with at.attacker() as attacker:
        attacker.send(OPENED, wire)
        attacker.open(3)
        attacker.data(3, message(b"fine"), end=True)
        assert await attacker.reset_with(1) == code
        assert await attacker.status(3) == "OK"
        assert attacker.body(3) == message(b"fine")
        await is_empty(at.server)


@pytest.mark.parametrize(
    "block",
    [
        request("/t.T/Wait", ("Upper", "1")),
        request("/t.T/Wait", ("connection", "close")),
        request("/t.T/Wait", (":late", "1")),
        request("/t.T/Wait")[len(headers.literal(":method", "POST")) :],
        request(""),
        b"",
    ],
)
async def test_malformed_requests_are_reset(at, block):
    async with at.attacker() as attacker:
        attacker.open(1, block)
        assert await attacker.reset_with(1) == P
        assert at.begun == []


async def test_what_is_not_grpc_is_told_so(at):
    async with at.attacker() as attacker:
        attacker.open(1, request(method="GET"), end=True)
        attacker.open(3, request("/t.T/Echo", ("content-type", "application/grpc-web")))
        assert (await attacker.fields(1))[":status"] == "415"
        assert (await attacker.fields(3))[":status"] == "415"
        assert await attacker.reset_with(3) == "NO_ERROR"
        assert not attacker.of(h2.RST_STREAM, 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("grpc-timeout", "soon"), "INTERNAL"),
        (("grpc-encoding", "br"), "UNIMPLEMENTED"),
        (("x-bin", "*"), "INTERNAL"),
        (("x", "y" * 9000), "RESOURCE_EXHAUSTED"),
    ],
)
async def test_a_call_that_cannot_be_taken_has_a_status_and_the_connection_lives(
    at, more, expected
):
    async with at.attacker() as attacker:
        attacker.open(1, request("/t.T/Echo", more), end=True)
        attacker.open(3)
        attacker.data(3, message(b""), end=True)
        assert await attacker.status(1) == expected
        assert await attacker.status(3) == "OK"
        assert not attacker.of(h2.RST_STREAM)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "INTERNAL"),
        (b"\x00\x00\x00", "INTERNAL"),
        (message(b"abc")[:-1], "INTERNAL"),
        (message(b"a") * 2, "INTERNAL"),
        (b"\x01\x00\x00\x00\x01x", "INTERNAL"),
        (h2.message_head((4 << 20) + 1), "RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_request_that_is_none_has_a_status(at, payload, expected, apart):
    async with at.attacker() as attacker:
        attacker.open(1)
        attacker.data(1, payload, end=not apart)
        if apart:
            attacker.data(1, b"", end=True)
        assert await attacker.status(1) == expected


async def test_what_is_allowed_though_rare_is_served(at):
    async with at.attacker() as attacker:
        padded = h2.PADDED | h2.HAS_PRIORITY
        block = b"\x03" + bytes(5) + request() + bytes(3)
        attacker.send(
            h2.pack(77, 0xFF, 1, b"of an unknown kind"),
            h2.pack(h2.PRIORITY, 0, 9, bytes(5)),
            h2.pack(h2.HEADERS, padded, 1, block),
            h2.pack(h2.CONTINUATION, 0, 1, headers.literal("x", "1")),
            h2.pack(h2.CONTINUATION, h2.END_HEADERS, 1, headers.literal("y", "2")),
            h2.pack(h2.DATA, h2.PADDED, 1, b"\x02" + message(b"padded")[:7] + b"\0\0"),
            h2.pack(h2.DATA, h2.PADDED, 1, b"\x00" + message(b"padded")[7:]),
            h2.headers(1, headers.literal("a", "trailer"), end_stream=True),
            h2.go_away(0, Code.NO_ERROR, "that was all"),
        )
        assert await attacker.status(1) == "OK"
        assert attacker.body(1) == message(b"padded")


# Windows


async def test_a_window_below_zero_holds_until_it_is_open_again(at):
    async with at.attacker() as attacker:
        attacker.open(1, request("/t.T/Large"))
        attacker.data(1, message(b"2"), end=True)
        await attacker.until(lambda: len(attacker.body(1)) == 65_535)
        attacker.send(h2.window_update(0, 10**6), h2.settings({h2.INITIAL_WINDOW_SIZE: 10}))
        attacker.send(h2.window_update(1, 65_524))  # still one below nothing
        await attacker.in_step()
        assert len(attacker.body(1)) == 65_535
        attacker.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 100}))
        await attacker.until(lambda: len(attacker.body(1)) == 65_535 + 89)
        attacker.send(h2.window_update(1, 10**5))
        assert await attacker.status(1) == "OK"
        assert len(attacker.body(1)) == 2 * 60_005


async def test_connection_data_beyond_the_window_ends_the_connection():
    async with (
        target(connection_window=70_000, stream_window=65_535) as at,
        at.attacker() as attacker,
    ):
        for number in (1, 3):
            attacker.open(number, request("/t.T/Wait"))
        # In one piece: no credit can be given on the way.
        attacker.send(*[h2.pack(h2.DATA, 0, n, bytes(16_384)) for n in (1, 3, 1, 3, 1)])
        assert (await attacker.ended_with())[0] == S
        await is_empty(at.server, connections=1)


# Floods: more than anybody needs of what leads to nothing


def flood(*frames: bytes, times: int = 5000) -> Callable[[Peer], None]:
    def run(attacker: Peer) -> None:
        attacker.send(OPENED)
        for _ in range(times):
            attacker.send(*frames)

    return run


def one_by_one(make: Callable[[int], bytes], times: int = 3000) -> Callable[[Peer], None]:
    def run(attacker: Peer) -> None:
        attacker.send(*[make(2 * n + 1) for n in range(times)])

    return run


TOO_LARGE = headers.block([("x", "y" * 10_000)])
FLOODS = {
    "settings": flood(settings()),
    "large settings": flood(settings(2700), times=10),
    "settings acknowledged": flood(h2.pack(h2.SETTINGS, h2.ACK, 0)),
    "pings answered": flood(h2.pack(h2.PING, h2.ACK, 0, bytes(8))),
    "priorities": flood(h2.pack(h2.PRIORITY, 0, 1, bytes(5))),
    "empty data": flood(h2.pack(h2.DATA, 0, 1)),
    "padding alone": flood(h2.pack(h2.DATA, h2.PADDED, 1, b"\x00")),
    "windows": flood(h2.window_update(1, 1)),
    "connection windows": flood(h2.window_update(0, 1)),
    "goaways": flood(h2.go_away(0, Code.NO_ERROR)),
    "unknown frames": flood(h2.pack(99, 0, 0, b"x")),
    "resets of closed streams": flood(h2.reset(1, Code.CANCEL)),
    "rapid reset": one_by_one(
        lambda n: h2.headers(n, request("/t.T/Wait"), end_stream=False) + h2.reset(n, Code.CANCEL)
    ),
    "made you reset by a window": one_by_one(
        lambda n: h2.headers(n, request("/t.T/Wait"), end_stream=False) + h2.window_update(n, 0)
    ),
    "made you reset by a message": one_by_one(
        lambda n: (
            h2.headers(n, request("/t.T/Wait"), end_stream=False)
            + h2.pack(h2.DATA, 0, n, b"\xff" * 5)
        )
    ),
    "malformed requests": one_by_one(lambda n: h2.headers(n, b"", end_stream=True)),
    "not gRPC": one_by_one(lambda n: h2.headers(n, request(method="GET"), end_stream=True)),
    "too many streams": one_by_one(lambda n: h2.headers(n, request("/t.T/Wait"), end_stream=False)),
    "too large headers": one_by_one(
        lambda n: h2.headers(n, request() + TOO_LARGE, end_stream=True), times=130
    ),
}


@pytest.mark.usefixtures("nothing_is_forgiven")
@pytest.mark.parametrize("attack", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_ended(at, attack):
    async with at.attacker() as attacker:
        attack(attacker)
        assert (await attacker.ended_with())[0] == CALM
        await is_empty(at.server, connections=1)
        assert len(at.begun) <= 2100


async def test_calls_reset_in_one_read_take_no_place_of_a_proper_one():
    """They are over, although their handlers have not had a turn yet to end."""
    async with target() as at, at.attacker() as attacker:
        at.server._max_calls = 100
        wire = [
            h2.headers(n, request("/t.T/Wait"), end_stream=False) + h2.reset(n, Code.CANCEL)
            for n in range(1, 301, 2)
        ]
        proper = h2.headers(301, request("/t.T/Echo"), end_stream=False)
        attacker.send(*wire, proper, h2.pack(h2.DATA, h2.END_STREAM, 301, message(b"well")))
        assert await attacker.status(301) == "OK"
        assert at.server._open <= 1


async def test_a_flood_of_pings_is_ended_soon():
    async with target(ping_allowed_every=4.0) as at, at.attacker() as attacker:
        attacker.send(*[h2.pack(h2.PING, 0, 0, bytes(8))] * 10)
        assert await attacker.ended_with() == (CALM, "too_many_pings")
        await is_empty(at.server, connections=1)


@pytest.mark.usefixtures("nothing_is_forgiven")
async def test_who_opens_its_window_byte_by_byte_is_ended(at):
    async with at.attacker() as attacker:
        attacker.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 0}))
        attacker.open(1, request("/t.T/Large"))
        attacker.data(1, message(b"1"), end=True)
        attacker.send(h2.window_update(1, 1) * 5000)
        assert (await attacker.ended_with())[0] == CALM
        await is_empty(at.server, connections=1)


async def test_who_reads_no_answers_is_ended(at, monkeypatch):
    monkeypatch.setattr("services.chassis.http2.outgoing._MOST_UNREAD", 100_000)
    others = set(at.server._connections)
    with socket.socket() as attacker:
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        attacker.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(attacker, ("127.0.0.1", at.port))
        await until(lambda: at.server.connections == 2)
        [mine] = at.server._connections - others
        # Each is refused in some hundred bytes, which nobody reads.
        refused = request("/t.T/Echo", ("grpc-encoding", "\x80" * 40))
        wire = [h2.headers(n, refused, end_stream=True) for n in range(1, 40_000, 2)]
        sending = loop.create_task(
            loop.sock_sendall(attacker, b"".join((h2.PREFACE, h2.settings({}), *wire)))
        )
        await until(lambda: mine.closed)
        sending.cancel()
        await asyncio.wait([sending])
    await is_empty(at.server, connections=1)


# Messages


async def test_half_messages_on_many_streams_share_a_budget(monkeypatch):
    monkeypatch.setattr("services.chassis.http2.server._UNFINISHED_BYTES", 500_000)
    async with target() as at, at.attacker() as attacker:
        numbers = range(1, 21, 2)
        for number in numbers:
            attacker.open(number)
            # Half of them lack a byte, half only the end.
            whole = message(bytes(99_995))
            wire = whole if number % 4 == 1 else whole[:-1]
            for at_ in range(0, len(wire), 16_384):
                attacker.data(number, wire[at_ : at_ + 16_384])
        await attacker.in_step()
        assert at.server._budget.taken <= 500_000
        refused = [n for n in numbers if attacker.of(h2.HEADERS, n)]
        assert 4 <= len(refused) <= 6
        assert {await attacker.status(n) for n in refused} == {"RESOURCE_EXHAUSTED"}
        assert at.streams() - len(numbers) + len(refused) <= 1
        attacker.drop()
        await is_empty(at.server, connections=1)


async def test_unread_messages_of_nothing_hold_back_their_sender(at):
    async with at.attacker() as attacker:
        attacker.open(1, request("/t.T/Wait"))
        sent = 256 * 1024 // 16_380
        for _ in range(sent):
            attacker.data(1, message(b"") * (16_380 // 5))
        await attacker.in_step()
        assert not attacker.of(h2.WINDOW_UPDATE, 1)


async def test_gzip_bombs_that_nobody_reads_are_within_the_budget(monkeypatch):
    monkeypatch.setattr("services.chassis.http2.server._UNFINISHED_BYTES", 10 << 20)
    bomb = gzip.compress(bytes(4 << 20))
    async with target() as at, at.attacker() as attacker:
        attacker.open(1, request("/t.T/Wait", ("grpc-encoding", "gzip")))
        for _ in range(4):
            attacker.data(1, b"\x01" + len(bomb).to_bytes(4, "big") + bomb)
        assert await attacker.status(1) == "RESOURCE_EXHAUSTED"
        await is_empty(at.server)


async def test_a_request_of_which_only_half_comes_ends(monkeypatch):
    monkeypatch.setattr("services.chassis.http2.server_connection._REQUEST_PATIENCE_S", 0.05)
    async with target(ping_every=0.05, ping_answer=1.0) as at, at.attacker() as attacker:
        attacker.open(1)
        attacker.data(1, message(b"abc")[:6])
        for _ in range(400):
            attacker.send(h2.pack(h2.PRIORITY, 0, 1, bytes(5)))  # it is alive
            if attacker.of(h2.HEADERS, 1):
                break
            await attacker._read()
        assert await attacker.status(1) == "DEADLINE_EXCEEDED"


async def test_who_answers_refusals_with_a_frame_each_is_no_attacker(at, monkeypatch):
    """As grpc's own client is, a thousand times a second: it widens its window for each answer."""
    monkeypatch.setattr("services.chassis.http2.abuse._PER_SECOND", 0.0)
    monkeypatch.setattr("services.chassis.http2.abuse._BURST", 50.0)
    async with at.attacker() as caller:
        for number in range(1, 1001, 2):
            caller.open(number, request("/t.T/Missing"))
            caller.data(number, message(b""), end=True)
            assert await caller.status(number) == "UNIMPLEMENTED"
            caller.send(h2.window_update(0, 1))
        await caller.in_step()
