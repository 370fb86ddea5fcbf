"""Our HTTP/2 server as grpc.aio's own client finds it: handlers, metadata, limits, the end."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.chassis.channels import channel_options
from services.chassis.http2 import frames as h2
from services.chassis.http2.server import Server
from tests.support.raw_http2 import (
    BOUND_S,
    generous,
    is_empty,
    message,
    only_for_new_connections,
    peer,
    request,
    serving,
    until,
)

MIB = 1 << 20


class Handlers:
    """What the tests call, and what became of the calls."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.running = 0
        self.written = 0
        self.release = asyncio.Event()
        self.seen: Any = None
        self.ended: list[bool] = []

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def repeat(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for part in request.split():
            yield part

    async def join(self, requests: Any, context: Any) -> bytes:
        return b" ".join([one async for one in requests])

    async def answer_each(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for one in requests:
            yield one.upper()

    async def read_and_write(self, _: Any, context: Any) -> None:
        while (one := await context.read()) is not grpc.aio.EOF:
            await context.write(one)

    async def metadata(self, request: bytes, context: Any) -> bytes:
        self.seen = context
        sent = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
        await context.send_initial_metadata(sent)
        context.set_trailing_metadata((("t-bin", b"\x00\xff"), ("t", "plain")))
        return b""

    async def abort(self, request: bytes, context: Any) -> None:
        trailing = (("grpc-status-details-bin", bytes(range(256)) * 40),)
        await context.abort(grpc.StatusCode.NOT_FOUND, "nicht gefunden: ü\n", trailing)

    async def wait(self, request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda one: self.ended.append(one.cancelled()))
        self.running += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.decode())
            raise
        finally:
            self.running -= 1
        return request

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield bytes(16_000)
            self.written += 1

    async def fail(self, request: bytes, context: Any) -> None:
        if request == b"bad metadata":
            context.set_trailing_metadata((("a b", "c\n"),))
        raise ZeroDivisionError

    async def never_read(self, requests: Any, context: Any) -> bytes:
        await self.release.wait()
        return b"%d" % len([one async for one in requests])

    def methods(self) -> dict[str, grpc.RpcMethodHandler]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return {
            "Echo": unary(self.echo),
            "Repeat": stream(self.repeat),
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Each": grpc.stream_stream_rpc_method_handler(self.answer_each),
            "ReadWrite": grpc.stream_stream_rpc_method_handler(self.read_and_write),
            "Metadata": unary(self.metadata),
            "Abort": unary(self.abort),
            "Wait": unary(self.wait),
            "Flood": stream(self.flood),
            "Fail": unary(self.fail),
            "NeverRead": grpc.stream_unary_rpc_method_handler(self.never_read),
        }


def dial(target: str | int, *options: tuple[str, Any]) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    target = f"127.0.0.1:{target}" if isinstance(target, int) else target
    own = {**dict(channel_options(-1)), "grpc.use_local_subchannel_pool": 1, **dict(options)}
    return grpc.aio.insecure_channel(target, options=list(own.items()))


class Setting:
    """A server with the handlers above, and a channel to it."""

    def __init__(self, server: Server, port: int, handlers: Handlers, channel: Any) -> None:
        self.server = server
        self.port = port
        self.handlers = handlers
        self.channel = channel

    def call(self, method: str, body: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(f"/t.T/{method}")(body, timeout=BOUND_S, **options)


@pytest.fixture
async def at() -> AsyncIterator[Setting]:
    handlers = Handlers()
    async with serving(handlers.methods()) as (server, port):
        async with dial(port) as channel:
            yield Setting(server, port, handlers, channel)
        handlers.release.set()
        await is_empty(server)


async def outcome(call: Any) -> tuple[str, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def words(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# Handlers


async def test_all_four_kinds_of_handlers_are_served(at):
    assert await at.call("Echo", b"") == b""
    assert [m async for m in at.channel.unary_stream("/t.T/Repeat")(b"a b c")] == [b"a", b"b", b"c"]
    assert [m async for m in at.channel.unary_stream("/t.T/Repeat")(b"")] == []
    assert await at.channel.stream_unary("/t.T/Join")(words(b"a", b"b")) == b"a b"
    assert await at.channel.stream_unary("/t.T/Join")(words()) == b""
    for method in ("Each", "ReadWrite"):
        call = at.channel.stream_stream(f"/t.T/{method}")(words(b"A", b"B"))
        assert [m async for m in call] == [b"A", b"B"]
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_answers_while_it_is_asked(at):
    call = at.channel.stream_stream("/t.T/Each")()
    for word in (b"one", b"two"):
        await call.write(word)
        assert await call.read() == word.upper()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_metadata_goes_both_ways(at):
    sent = (("x-plain", "a value, with = signs"), ("x-twice", "1"), ("x-twice", "2"))
    binary = (("x-raw-bin", bytes(range(256))), ("x-none-bin", b""))
    call = at.call("Metadata", metadata=(*sent, *binary))
    initial = [(k, v) for k, v in await call.initial_metadata() if k.startswith("x-")]
    assert initial == [*sent, *binary]
    assert [*await call.trailing_metadata()] == [("t-bin", b"\x00\xff"), ("t", "plain")]
    assert at.handlers.seen.peer().startswith("ipv4:127.0.0.1:")
    # grpc writes a timeout in few digits, rounded up.
    assert 0 < at.handlers.seen.time_remaining() <= BOUND_S + 1


async def test_an_abort_carries_its_details(at):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await at.call("Abort")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == "nicht gefunden: ü\n"
    [(name, value)] = raised.value.trailing_metadata()
    assert (name, value) == ("grpc-status-details-bin", bytes(range(256)) * 40)


async def test_a_method_that_does_not_exist_is_unimplemented(at):
    assert (await outcome(at.call("Nothing")))[0] == "UNIMPLEMENTED"
    assert (await outcome(at.channel.unary_unary("/no.Such/Echo")(b"")))[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("body", [b"", b"bad metadata"])
async def test_a_handler_that_fails_ends_its_call_and_no_other(at, body):
    assert (await outcome(at.call("Fail", body)))[0] == "UNKNOWN"
    assert await at.call("Echo", b"x") == b"x"


# Deadlines and cancelling


async def test_a_deadline_ends_the_call_and_the_handler(at):
    async with peer(at.port) as caller:
        # Long enough for the handler to have begun, however busy the machine.
        caller.open(1, request("/t.T/Wait", ("grpc-timeout", "1500m")))
        caller.data(1, message(b"late"), end=True)
        assert await caller.status(1) == "DEADLINE_EXCEEDED"
    await until(lambda: at.handlers.cancelled == ["late"])
    code, _ = await outcome(at.channel.unary_unary("/t.T/Wait")(b"", timeout=0.02))
    assert code == "DEADLINE_EXCEEDED"
    await until(lambda: at.handlers.running == 0)


async def test_a_cancel_reaches_the_handler(at):
    call = at.call("Wait", b"unwanted")
    await until(lambda: at.handlers.running == 1)
    call.cancel()
    await until(lambda: at.handlers.cancelled == ["unwanted"])
    assert at.handlers.ended == [True]


async def test_a_caller_that_is_gone_cancels_its_handlers(at):
    async with dial(at.port) as other:
        calls = [other.unary_unary("/t.T/Wait")(b"gone") for _ in range(3)]
        await until(lambda: at.handlers.running == 3)
    await until(lambda: at.handlers.cancelled == ["gone"] * 3)
    assert all(call.cancelled() for call in calls)


# Large messages and flow control


async def test_messages_of_four_mib_go_both_ways(at):
    body = bytes(4 * MIB)
    assert await at.call("Echo", body) == body
    parts = [b"x" * MIB] * 3
    assert await at.channel.stream_unary("/t.T/Join")(words(*parts[:2])) == b" ".join(parts[:2])
    assert [len(m) async for m in at.channel.stream_stream("/t.T/Each")(words(*parts))] == [MIB] * 3


async def test_a_message_beyond_the_limit_is_refused_and_the_connection_lives(at):
    assert (await outcome(at.call("Echo", bytes(4 * MIB + 1))))[0] == "RESOURCE_EXHAUSTED"
    call = at.channel.stream_stream("/t.T/Each")(words(b"ok", bytes(5 * MIB)))
    assert await call.read() == b"OK"
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await at.call("Echo", b"x") == b"x"
    assert at.server.connections == 1


async def test_a_reader_that_stops_blocks_its_writer_alone(at):
    call = at.channel.unary_stream("/t.T/Flood")(b"1000")
    assert len(await call.read()) == 16_000
    # The writer comes to a halt with a bounded amount on its way; other calls are answered.
    halted = 0
    for _ in range(200):
        before = at.handlers.written
        assert await at.call("Echo", b"x" * 100_000) == b"x" * 100_000
        halted = halted + 1 if at.handlers.written == before else 0
        if halted == 5:
            break
    assert halted == 5
    assert at.handlers.written < 200
    for _ in range(999):
        assert len(await call.read()) == 16_000
    assert await call.read() is grpc.aio.EOF


async def test_a_handler_that_does_not_read_holds_back_its_caller(at):
    await at.call("Echo")
    call = at.channel.stream_unary("/t.T/NeverRead")()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(300):
            await call.write(bytes(16_000))
            sent += 1
        await call.done_writing()

    sending = asyncio.create_task(send())
    [connection] = at.server._connections
    await until(lambda: any(s.unread >= 240_000 for s in connection.streams.values()))
    for _ in range(5):
        assert await at.call("Echo", b"x") == b"x"
    assert max(s.unread for s in connection.streams.values()) <= 262_144
    assert sent < 300
    at.handlers.release.set()
    await sending
    assert await call == b"300"


async def test_compressed_requests_are_read(at):
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        assert await at.call("Echo", b"z" * 100_000, compression=algorithm) == b"z" * 100_000
    refused = await outcome(at.call("Echo", bytes(5 * MIB), compression=grpc.Compression.Gzip))
    assert refused[0] == "RESOURCE_EXHAUSTED"


# How many


async def test_more_streams_than_allowed_wait_for_their_turn():
    handlers = Handlers()
    limits = generous(concurrent_streams=3)
    async with serving(handlers.methods(), limits) as (server, port), dial(port) as channel:
        await channel.unary_unary("/t.T/Echo")(b"")
        calls = [channel.unary_unary("/t.T/Wait")(b"%d" % n) for n in range(8)]
        await until(lambda: handlers.running == 3)
        [connection] = server._connections
        assert len(connection.streams) == 3
        handlers.release.set()
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(8)]


async def test_more_calls_than_a_server_takes_are_refused():
    handlers = Handlers()
    async with serving(handlers.methods(), max_calls=2) as (_, port), dial(port) as channel:
        calls = [channel.unary_unary("/t.T/Wait")(b"") for _ in range(2)]
        await until(lambda: handlers.running == 2)
        assert (await outcome(channel.unary_unary("/t.T/Echo")(b"")))[0] == "RESOURCE_EXHAUSTED"
        handlers.release.set()
        await asyncio.gather(*calls)
        assert await channel.unary_unary("/t.T/Echo")(b"x") == b"x"


# The end


async def test_a_graceful_stop_lets_calls_finish_and_takes_no_more():
    handlers = Handlers()
    async with serving(handlers.methods()) as (server, port):
        async with dial(port) as channel, peer(port) as slow:
            call = channel.unary_unary("/t.T/Wait")(b"finished")
            slow.open(1)
            slow.data(1, message(b"half")[:-2])
            await slow.in_step()
            await until(lambda: handlers.running == 1)
            stopping = asyncio.create_task(server.stop(BOUND_S))
            await slow.until(lambda: slow.of(7))  # GOAWAY
            # Opened before it was heard of: refused as never begun, and what belongs to it is too.
            slow.open(3)
            slow.data(3, message(b"late"), end=True)
            assert await slow.reset_with(3) == "REFUSED_STREAM"
            # A request that was on its way is still taken.
            slow.data(1, b"lf", end=True)
            assert await slow.status(1) == "OK"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            handlers.release.set()
            assert await call == b"finished"
            await stopping
            assert (await slow.ended_with())[0] == "NO_ERROR"
        await is_empty(server)


async def test_a_stop_cancels_what_does_not_finish():
    handlers = Handlers()
    async with serving(handlers.methods()) as (server, port), dial(port) as channel:
        call = channel.unary_unary("/t.T/Wait")(b"cut")
        await until(lambda: handlers.running == 1)
        await server.stop(0.01)
        assert handlers.cancelled == ["cut"]
        assert (await outcome(call))[0] == "UNAVAILABLE"
        await is_empty(server)


async def test_callers_that_are_sent_away_finish_and_come_back_on_another_connection(at):
    call = at.call("Wait", b"old")
    await until(lambda: at.handlers.running == 1)
    [old] = at.server._connections
    at.server.send_away("rebalance")
    async with asyncio.timeout(BOUND_S):
        # A call may be on its way before the caller hears of it: that one is served here.
        while not at.server._connections - {old}:
            assert await at.call("Echo", b"new") == b"new"
    at.handlers.release.set()
    assert await call == b"old"


async def test_connections_of_a_certain_age_are_left():
    handlers = Handlers()
    async with serving(handlers.methods(), connection_age=0.01) as (_, port), peer(port) as old:
        [away] = await old.until(lambda: old.of(7))
        assert away[3] == b"\x7f\xff\xff\xff" + bytes(4) + b"max_age"
        old.open(1)
        old.data(1, message(b"still served"), end=True)
        assert await old.status(1) == "OK"


async def test_listeners_can_be_closed_alone(at):
    assert await at.call("Echo", b"x") == b"x"
    at.server.close_listeners()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", at.port)
    assert await at.call("Echo", b"y") == b"y"
    assert at.server.connections == 1


async def test_a_peer_that_answers_no_ping_is_gone():
    handlers = Handlers()
    async with serving(handlers.methods()) as (server, port), dial(port) as channel:
        call = channel.unary_unary("/t.T/Wait")(b"")
        await until(lambda: handlers.running == 1)
        only_for_new_connections(server, ping_every=0.03, ping_answer=0.03)
        async with peer(port) as silent:
            silent.open(1)
            silent.data(1, message(b"x"))
            assert await silent.ended_with() == ("", "")
            assert silent.of(6)  # it was asked
            await until(lambda: server.connections == 1)
        handlers.release.set()
        await call


async def test_a_peer_that_answers_is_asked_again():
    limits = generous(ping_every=0.05, ping_answer=1.0)
    async with serving(Handlers().methods(), limits) as (_, port), peer(port) as one:
        asked = await one.until(lambda: one.of(h2.PING))
        one.send(h2.pack(h2.PING, h2.ACK, 0, asked[0][3]))
        await one.until(lambda: len(one.of(h2.PING)) == 2)


# Where it listens


async def test_a_unix_socket_is_served(tmp_path):
    handlers = Handlers()
    server = Server(limits=generous(), max_calls=10)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("t.T", handlers.methods()),)
    )
    assert await server.listen(f"unix:{tmp_path}/s") == 0
    await server.start()
    async with dial(f"unix:{tmp_path}/s") as channel:
        assert await channel.unary_unary("/t.T/Metadata")(b"") == b""
    assert handlers.seen.peer() == "unix:"
    await server.stop(None)


def has_ipv6() -> bool:
    """Whether this machine reaches itself by IPv6: containers often do not, though they know it."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


@pytest.mark.parametrize("address", ["[::]:0", ":0", "*:0", "0.0.0.0:0"])
async def test_a_wildcard_is_reached(address):
    handlers = Handlers()
    server = Server(limits=generous(), max_calls=10)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("t.T", handlers.methods()),)
    )
    port = await server.listen(address)
    await server.start()
    async with dial(port) as channel:
        assert await channel.unary_unary("/t.T/Metadata")(b"") == b""
    assert handlers.seen.peer().startswith("ipv4:127.0.0.1:")
    if address != "0.0.0.0:0" and has_ipv6():
        async with dial(f"[::1]:{port}") as channel:
            assert await channel.unary_unary("/t.T/Metadata")(b"") == b""
        assert handlers.seen.peer().startswith("ipv6:[::1]:")
    await server.stop(None)


async def test_a_port_is_shared_by_those_who_agree_to_it():
    servers = [Server(limits=generous(), max_calls=1) for _ in range(3)]
    port = await servers[0].listen("127.0.0.1:0", reuse_port=True)
    assert await servers[1].listen(f"127.0.0.1:{port}", reuse_port=True) == port
    await servers[1].start()
    with pytest.raises(OSError, match="in use"):
        await servers[2].listen(f"127.0.0.1:{port}")
    for server in servers:
        await server.stop(None)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:http"])
async def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(OSError, match="is not host:port"):
        await Server(limits=generous(), max_calls=1).listen(address)


# Others' servicers, and what is left


async def test_a_health_watch_hears_of_changes():
    servicer = health.aio.HealthServicer()
    server = Server(limits=generous(), max_calls=10)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = await server.listen("127.0.0.1:0")
    await server.start()
    kinds = health_pb2.HealthCheckResponse
    await servicer.set("a", kinds.NOT_SERVING)
    async with dial(port) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="a")
        )
        assert (await watch.read()).status == kinds.NOT_SERVING
        await servicer.set("a", kinds.SERVING)
        assert (await watch.read()).status == kinds.SERVING
        watch.cancel()
    await is_empty(server)
    await server.stop(None)


async def test_nothing_of_a_call_or_a_connection_outlives_it():
    handlers = Handlers()
    async with serving(handlers.methods()) as (server, port):
        async with dial(port) as channel:
            waiting = channel.unary_unary("/t.T/Wait")(b"")
            each = channel.stream_stream("/t.T/Each")()
            await each.write(b"x")
            await each.read()
            await outcome(channel.unary_unary("/t.T/Abort")(b""))
            await until(lambda: handlers.running == 1)
            [connection] = server._connections
            left = [weakref.ref(connection), *map(weakref.ref, connection.streams.values())]
            left += [weakref.ref(c.task) for c in connection.streams.values() if c.task is not None]
            assert len(left) == 5
            del connection
            waiting.cancel()
            each.cancel()
            del waiting, each
        await is_empty(server, connections=0)

        def collected() -> bool:
            gc.collect()
            return all(one() is None for one in left)

        await until(collected)
