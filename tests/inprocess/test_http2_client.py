"""Our HTTP/2 client against grpc.aio's server, our own, and one written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.client import ClientCall, ClientConnection, connect
from services.chassis.http2.frames import Code
from tests.support.raw_http2 import BOUND_S, Peer, generous, message, serving, until

MIB = 1 << 20


async def each(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for one in requests:
        if one == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "nö", (("t-bin", b"\xff"),))
        if one == b"metadata":
            one = dict(context.invocation_metadata())["x-bin"]
        yield one


async def many(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for one in requests:
        for _ in range(int(one)):
            yield bytes(50_000)


METHODS = {
    "Each": grpc.stream_stream_rpc_method_handler(each),
    "Many": grpc.stream_stream_rpc_method_handler(many),
}


@asynccontextmanager
async def grpc_aio() -> AsyncIterator[tuple[Any, int]]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 * MIB)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", METHODS),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(None)


@pytest.fixture(params=["grpc.aio", "ours"])
async def at(request) -> AsyncIterator[tuple[Any, int]]:
    server = grpc_aio() if request.param == "grpc.aio" else serving(METHODS)
    async with server as served:
        yield served


@asynccontextmanager
async def connected(port: int, **limits: Any) -> AsyncIterator[ClientConnection]:
    connection = await connect(f"127.0.0.1:{port}", generous(**limits))
    try:
        yield connection
    finally:
        connection.close(Code.NO_ERROR, "done")
        assert not connection.streams


class Heard(list[bytes]):
    """A call, and the messages that came."""

    def __init__(self, connection: ClientConnection, method: str = "Each", *metadata: Any) -> None:
        super().__init__()
        self.call: ClientCall = connection.call(f"/t.T/{method}", metadata, self.append)

    async def end(self) -> str:
        async with asyncio.timeout(BOUND_S):
            error = await self.call.ended
        return "OK" if error is None else error.code().name


# Against real servers


async def test_messages_go_and_come_and_the_call_ends_well(at):
    async with connected(at[1]) as connection:
        heard = Heard(connection)
        heard.call.send(b"a")
        await until(lambda: heard == [b"a"])
        heard.call.send(b"")
        heard.call.send(b"c")
        heard.call.half_close()
        assert await heard.end() == "OK"
        assert heard == [b"a", b"", b"c"]
        with pytest.raises(grpc.aio.AioRpcError, match="the call is over"):
            heard.call.send(b"late")


async def test_a_status_comes_with_its_details(at):
    async with connected(at[1]) as connection:
        heard = Heard(connection)
        heard.call.send(b"abort")
        assert await heard.end() == "NOT_FOUND"
        error = heard.call.ended.result()
        assert error is not None
        assert error.details() == "nö"
        assert ("t-bin", b"\xff") in tuple(error.trailing_metadata())
        unknown = Heard(connection, "Nothing")
        assert await unknown.end() == "UNIMPLEMENTED"


async def test_metadata_is_sent(at):
    async with connected(at[1]) as connection:
        heard = Heard(connection, "Each", ("x-bin", b"\x00\xfe"))
        heard.call.send(b"metadata")
        await until(lambda: heard == [b"\x00\xfe"])
        with pytest.raises(ValueError, match="printable"):
            Heard(connection, "Each", ("x", "a\nb"))
        heard.call.cancel()
        assert await heard.end() == "CANCELLED"


async def test_large_messages_pass_the_windows_both_ways(at):
    async with connected(at[1]) as connection:
        heard = Heard(connection)
        bodies = [b"x" * (3 * MIB), b"y" * (2 * MIB), b"z"]
        for body in bodies:
            heard.call.send(body)
        heard.call.half_close()
        assert await heard.end() == "OK"
        assert heard == bodies


async def test_many_streams_share_a_connection(at):
    async with connected(at[1], connection_window=100_000, stream_window=70_000) as connection:
        calls = [Heard(connection, "Many") for _ in range(5)]
        for heard in calls:
            heard.call.send(b"10")
            heard.call.half_close()
        assert [await heard.end() for heard in calls] == ["OK"] * 5
        assert [len(heard) for heard in calls] == [10] * 5


async def test_a_message_beyond_the_limit_ends_its_call_alone(at):
    async with connected(at[1], message_bytes=1000) as connection:
        big, small = Heard(connection), Heard(connection)
        big.call.send(bytes(1001))
        assert await big.end() == "RESOURCE_EXHAUSTED"
        small.call.send(bytes(1000))
        small.call.half_close()
        assert await small.end() == "OK"


async def test_a_server_that_stops_ends_its_calls(at):
    server, port = at
    async with connected(port) as connection:
        heard = Heard(connection)
        heard.call.send(b"a")
        await until(lambda: heard == [b"a"])
        await server.stop(None)
        assert await heard.end() in ("UNAVAILABLE", "CANCELLED")  # grpc.aio says the latter
        await until(lambda: connection.closed)
        assert await Heard(connection).end() == "UNAVAILABLE"


async def test_a_cancel_reaches_the_handler_even_after_its_waiter_was_cancelled():
    cancelled = asyncio.Event()

    async def wait(requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"here"
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    methods = {"Wait": grpc.stream_stream_rpc_method_handler(wait)}
    async with serving(methods) as (_, port), connected(port) as connection:
        heard = Heard(connection, "Wait")
        await until(lambda: heard == [b"here"])
        waiter = asyncio.create_task(heard.end())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
        heard.call.cancel()
        await asyncio.wait_for(cancelled.wait(), BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError):
            heard.call.send(b"late")


async def test_nobody_there_is_an_os_error():
    with pytest.raises(OSError, match=r"Connect call failed|Connection refused"):
        await connect("127.0.0.1:1", generous())
    with pytest.raises(OSError, match="is not host:port"):
        await connect("127.0.0.1", generous())


# Against a server written by hand


Script = Callable[[Peer], Awaitable[None]]
OK = headers.block([(":status", "200"), ("content-type", "application/grpc")])
WELL = headers.block([("grpc-status", "0")])


@asynccontextmanager
async def scripted(script: Script, **limits: Any) -> AsyncIterator[tuple[Heard, Peer]]:
    """A call to a server that does what the script says once the call has arrived."""
    peers: list[Peer] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Peer(reader, writer)
        peers.append(one)
        assert await reader.readexactly(len(h2.PREFACE)) == h2.PREFACE
        one.send(h2.settings({}))
        await one.until(lambda: one.of(h2.HEADERS))
        await script(one)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connected(port, **limits) as connection:
        heard = Heard(connection)
        await until(lambda: bool(peers))
        yield heard, peers[0]
    peers[0].drop()
    server.close()


async def ended(*frames: bytes, **limits: Any) -> str:
    async def send(one: Peer) -> None:
        one.send(*frames)

    async with scripted(send, **limits) as (heard, _):
        return await heard.end()


def head(block: bytes, *, end: bool = False) -> bytes:
    return h2.headers(1, block, end_stream=end)


def data(payload: bytes, *, end: bool = False) -> bytes:
    return h2.pack(h2.DATA, h2.END_STREAM if end else 0, 1, payload)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.REFUSED_STREAM, "UNAVAILABLE"),
        (Code.CANCEL, "CANCELLED"),
        (Code.ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"),
        (Code.INTERNAL_ERROR, "INTERNAL"),
        (Code.NO_ERROR, "INTERNAL"),
    ],
)
async def test_a_reset_becomes_the_status_that_grpc_gives_it(code, expected):
    assert await ended(h2.reset(1, code)) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("400", "INTERNAL"),
        ("401", "UNAUTHENTICATED"),
        ("403", "PERMISSION_DENIED"),
        ("404", "UNIMPLEMENTED"),
        ("429", "UNAVAILABLE"),
        ("503", "UNAVAILABLE"),
        ("418", "UNKNOWN"),
    ],
)
async def test_an_http_error_becomes_the_status_that_grpc_gives_it(status, expected):
    assert await ended(head(headers.block([(":status", status)]), end=True)) == expected


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ((head(OK), head(WELL, end=True)), "OK"),
        ((head(OK + WELL, end=True),), "OK"),
        ((head(headers.block([(":status", "103")])), head(OK), head(WELL, end=True)), "OK"),
        ((head(OK), head(headers.block([("grpc-status", "99")]), end=True)), "UNKNOWN"),
        ((head(OK), head(b"\x00\x0bgrpc-status\x01\xb2", end=True)), "UNKNOWN"),
        ((head(OK), head(headers.block([("x", "y")]), end=True)), "UNKNOWN"),
        ((head(OK), data(b"", end=True)), "INTERNAL"),
        ((head(OK), data(message(b"abc")[:6]), head(WELL, end=True)), "INTERNAL"),
        ((head(OK), head(WELL)), "INTERNAL"),
        ((head(OK), data(b"\x07\x00\x00\x00\x01x")), "INTERNAL"),
        ((head(headers.block([(":status", "200"), ("content-type", "text/html")])),), "UNKNOWN"),
        ((h2.go_away(0, Code.NO_ERROR, "leaving"),), "UNAVAILABLE"),
        ((h2.pack(h2.SETTINGS, 0, 1),), "UNAVAILABLE"),
        ((h2.headers(3, OK, end_stream=True),), "UNAVAILABLE"),  # an answer to nothing
        ((h2.pack(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(4)),), "UNAVAILABLE"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "UNAVAILABLE"),
    ],
)
async def test_an_answer_right_or_wrong_ends_the_call_with_a_status(frames, expected):
    assert await ended(*frames) == expected


async def test_answers_beyond_the_header_limit_are_refused():
    large = headers.block([("x", "y" * 300)])
    assert await ended(head(OK), head(WELL + large, end=True), header_bytes=200) in (
        "RESOURCE_EXHAUSTED",
    )


async def test_a_goaway_lets_the_calls_before_it_end():
    async def leave(one: Peer) -> None:
        one.send(h2.go_away(1, Code.NO_ERROR), head(OK), data(message(b"still")))
        one.send(head(WELL, end=True))

    async with scripted(leave) as (heard, _):
        assert await heard.end() == "OK"
        assert heard == [b"still"]


async def test_a_lost_connection_is_unavailable():
    async def die(one: Peer) -> None:
        one.drop()

    async with scripted(die) as (heard, _):
        assert await heard.end() == "UNAVAILABLE"


async def test_a_server_that_answers_no_ping_is_lost():
    async def nothing(one: Peer) -> None:
        pass

    async with scripted(nothing, ping_every=0.02, ping_answer=0.02) as (heard, _):
        assert await heard.end() == "UNAVAILABLE"


async def test_sending_keeps_to_the_windows_and_goes_on_with_them():
    async def narrow(one: Peer) -> None:
        one.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 10}))
        await one.until(lambda: [f for f in one.of(h2.SETTINGS) if f[1] & h2.ACK][1:])
        one.send(head(OK), data(message(b"go")))

    async with scripted(narrow) as (heard, server):
        await until(lambda: heard == [b"go"])
        heard.call.send(b"x" * 30)
        drained = asyncio.create_task(heard.call.drained())
        await server.until(lambda: server.body(1))
        assert len(server.body(1)) == 10
        assert not drained.done()
        server.send(h2.window_update(1, 25))
        await server.until(lambda: len(server.body(1)) == 35)
        await drained
        heard.call.send(b"never leaves")
        drained = asyncio.create_task(heard.call.drained())
        server.send(head(WELL, end=True))
        assert await heard.end() == "OK"
        await drained
        assert server.body(1) == message(b"x" * 30)
