"""The fake engine's second door: StreamGenerate over the least HTTP/2 there is.

grpc.aio spends more on a message than Envoy does. Where both ends of a proxy are grpc.aio, the
proxy waits for them most of the time, and its cost a token is that of an idle proxy. This end and
lean_load.py let Envoy and nginx show what they can do. It authenticates nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from anabranch.v1 import generation_pb2 as pb
from bench.dataplane import http2
from services.chassis.errors import Fault
from services.chassis.model_handler import Cancel, Outlet

Open = Callable[[pb.GenerateRequest, Outlet], Cancel]

_ANSWER_HEAD = b"\x88" + http2.literal(b"content-type", b"application/grpc")
_ANSWER_END = http2.literal(b"grpc-status", b"0")


class _Stream:
    """The outlet of one RPC."""

    __slots__ = ("_connection", "_number")

    def __init__(self, connection: _Connection, number: int) -> None:
        self._connection = connection
        self._number = number

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._connection.send(self._number, raw, last)

    def fail(self, fault: Fault) -> None:
        self._connection.reset(self._number)


class _Connection(asyncio.Protocol):
    """One connection. What becomes ready in one turn of the loop leaves in one write."""

    def __init__(self, open_: Open) -> None:
        self._open = open_
        self._buffer = bytearray()
        self._greeted = False
        self._bodies: dict[int, bytearray] = {}
        self._running: dict[int, Cancel] = {}
        self._headed: set[int] = set()
        self._out: list[bytes] = []
        self._out_size = 0
        self._window = http2.FIRST_WINDOW
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(http2.opening())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for cancel in tuple(self._running.values()):
            cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._greeted:
            if len(self._buffer) < len(http2.PREFACE):
                return
            del self._buffer[: len(http2.PREFACE)]
            self._greeted = True
        taken = 0
        for kind, flags, stream, payload in http2.frames(self._buffer):
            if kind == http2.DATA:
                taken += len(payload)
            self._take(kind, flags, stream, payload)
        if taken:
            self._put(http2.window(0, taken))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.DATA:
            body = self._bodies.setdefault(stream, bytearray())
            body += payload
            if flags & http2.END_STREAM:
                request = pb.GenerateRequest.FromString(bytes(self._bodies.pop(stream)[5:]))
                self._running[stream] = self._open(request, _Stream(self, stream))
        elif kind == http2.WINDOW_UPDATE:
            if stream == 0:
                self._window += int.from_bytes(payload, "big")
                self._flush()
        elif kind == http2.RST_STREAM:
            self._headed.discard(stream)
            if stream in self._running:
                self._running.pop(stream)()
        elif kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
            self._put(http2.frame(kind, http2.ACK, 0, payload if kind == http2.PING else b""))

    def send(self, stream: int, message: bytes, last: bool) -> None:
        """Adds a message to what leaves with this turn of the loop."""
        if last and stream not in self._running:
            return  # the last word of an RPC that was reset
        if stream not in self._headed:
            self._headed.add(stream)
            self._put(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, _ANSWER_HEAD))
        frame = http2.data(stream, message)
        self._out_size += http2.weight(frame)
        self._put(frame)
        if last:
            del self._running[stream]
            self._headed.discard(stream)
            flags = http2.END_HEADERS | http2.END_STREAM
            self._put(http2.frame(http2.HEADERS, flags, stream, _ANSWER_END))

    def reset(self, stream: int) -> None:
        """Ends a stream without an answer."""
        self._put(http2.frame(http2.RST_STREAM, 0, stream, b"\0\0\0\2"))

    def _put(self, frame: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame)

    def _flush(self) -> None:
        if not self._out or self._transport is None:
            return
        if self._out_size <= self._window:
            ready, self._out = self._out, []
            self._window -= self._out_size
            self._out_size = 0
        else:
            ready = self._fitting()
        self._transport.write(b"".join(ready))

    def _fitting(self) -> list[bytes]:
        """Takes the frames that the peer's window has room for."""
        count = 0
        for frame in self._out:
            size = http2.weight(frame)
            if size > self._window:
                break
            self._window -= size
            self._out_size -= size
            count += 1
        fitting, self._out = self._out[:count], self._out[count:]
        return fitting


@asynccontextmanager
async def serving(address: str, open_: Open) -> AsyncIterator[None]:
    """Listens on host:port until the context is left."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(open_), host, int(port), backlog=4096)
    try:
        yield
    finally:
        server.close()
