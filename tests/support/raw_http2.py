"""A peer that writes HTTP/2 frames by hand, right or wrong, and reads what comes back.

It keeps no rule that it is not told to keep. For tests of our own transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import hpack

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.connection import TransportLimits
from services.chassis.http2.frames import Code
from services.chassis.http2.server import Server
from tests.support.waiting import BOUND_S

REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/Echo"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def request(path: str = "/t.T/Echo", *more: tuple[str, str], **replaced: str) -> bytes:
    """A header block of a call; `replaced` by pseudo-header name without its colon."""
    own = {**dict(REQUEST), ":path": path, **{f":{k}": v for k, v in replaced.items()}}
    return b"".join(headers.literal(name, value) for name, value in (*own.items(), *more))


def message(body: bytes) -> bytes:
    """A gRPC message."""
    return h2.message_head(len(body)) + body


class Peer:
    """One connection, and what was heard on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = h2.FrameReader()
        self._decoder = hpack.Decoder()
        self.heard: list[h2.Frame] = []
        self.closed = False

    def send(self, *frames: bytes) -> None:
        """Writes bytes as they are."""
        self._writer.write(b"".join(frames))

    def greet(self, settings: dict[int, int] | None = None) -> None:
        """The preface of a proper client."""
        self.send(h2.PREFACE, h2.settings(settings or {}))

    def open(self, number: int, block: bytes | None = None, *, end: bool = False) -> None:
        """HEADERS of a call."""
        self.send(h2.headers(number, request() if block is None else block, end_stream=end))

    def data(self, number: int, payload: bytes, *, end: bool = False) -> None:
        """DATA, one frame."""
        self.send(h2.pack(h2.DATA, h2.END_STREAM if end else 0, number, payload))

    async def until(self, enough: Callable[[], Any]) -> Any:
        """Reads until `enough` is true, and returns it; fails when the connection ends before."""
        async with asyncio.timeout(BOUND_S):
            while not (found := enough()):
                assert not self.closed, f"closed; heard {self.heard[-5:]}"
                await self._read()
        return found

    async def _read(self) -> None:
        try:
            received = await self._reader.read(65536)
        except ConnectionError:
            received = b""
        if not received:
            self.closed = True
            self.drop()
        self.heard += self._frames.feed(received)

    def of(self, kind: int, number: int | None = None) -> list[h2.Frame]:
        """Frames of a kind that were heard, of one stream or of all."""
        return [f for f in self.heard if f[0] == kind and number in (None, f[2])]

    def body(self, number: int) -> bytes:
        """All DATA of a stream."""
        return b"".join(payload for *_, payload in self.of(h2.DATA, number))

    async def ended_with(self) -> tuple[str, str]:
        """Code and words of the GOAWAY with which the server closed the connection."""
        async with asyncio.timeout(BOUND_S):
            while not self.closed:
                await self._read()
        away = self.of(h2.GOAWAY)
        if not away:
            return "", ""
        payload = away[-1][3]
        return Code(int.from_bytes(payload[4:8], "big")).name, payload[8:].decode()

    async def reset_with(self, number: int) -> str:
        """The code with which the server reset a stream."""
        found = await self.until(lambda: self.of(h2.RST_STREAM, number))
        return Code(int.from_bytes(found[0][3], "big")).name

    async def fields(self, number: int) -> dict[str, str]:
        """The last header fields of a stream that has ended."""

        def trailers() -> list[h2.Frame]:
            return [f for f in self.of(h2.HEADERS, number) if f[1] & h2.END_STREAM]

        found = await self.until(trailers)
        return {str(k): str(v) for k, v in self._decoder.decode(found[0][3])}

    async def status(self, number: int) -> str:
        """The gRPC status of a stream."""
        code = int((await self.fields(number))["grpc-status"])
        return next(c.name for c in grpc.StatusCode if c.value[0] == code)

    async def in_step(self) -> None:
        """Returns once the server has handled all that was sent: a ping comes back."""
        mark = len(self.heard).to_bytes(8, "big")
        self.send(h2.pack(h2.PING, 0, 0, mark))
        await self.until(lambda: [f for f in self.of(h2.PING) if f[1] and f[3] == mark])

    def drop(self) -> None:
        """Gone, without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def peer(port: int, *, greet: bool = True) -> AsyncIterator[Peer]:
    """Connects to a server on this machine; dropped afterwards."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = Peer(reader, writer)
    try:
        if greet:
            one.greet()
        yield one
    finally:
        one.drop()


async def until(true: Callable[[], bool]) -> None:
    """Polls, with a bound."""
    async with asyncio.timeout(BOUND_S):
        while not true():
            await asyncio.sleep(0.001)


def generous(**changed: Any) -> TransportLimits:
    """Limits as in production but for what a test changes; pings are no part of most tests."""
    values = {"message_bytes": 4 << 20, "ping_every": 600.0, "ping_allowed_every": 0.0, **changed}
    return TransportLimits(**values)


def only_for_new_connections(server: Server, **changed: Any) -> None:
    """Limits for the connections that come from now on.

    Where a limit is a short time, a proper caller's connection must be there before: on a busy
    machine that caller, too, may take longer to greet or to answer a ping.
    """
    server._limits = generous(**changed)


@asynccontextmanager
async def serving(
    methods: dict[str, grpc.RpcMethodHandler], limits: TransportLimits | None = None, **options: Any
) -> AsyncIterator[tuple[Server, int]]:
    """A server of /t.T/… and its port."""
    server = Server(limits=limits or generous(), **{"max_calls": 1000, **options})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", methods),))
    port = await server.listen("127.0.0.1:0")
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(None)


async def is_empty(server: Server, *, connections: int | None = None) -> None:
    """Waits until nothing of any call is left at a server: no streams, tasks, bytes.

    With `connections`, until it has so many of them. (A channel of grpc's own keeps its connection
    for as long as anything refers to one of its calls.)
    """
    await until(lambda: not server._calls and not any(c.streams for c in server._connections))
    assert server._budget.taken == server._open == 0
    if connections is not None:
        await until(lambda: server.connections == connections)
