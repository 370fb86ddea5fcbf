"""Plain RPCs over the least HTTP/2 there is: a caller that costs less than a proxy does.

See lean_server.py for why. One message is one token: neither Envoy nor nginx joins messages.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import cast

from bench.dataplane import http2
from bench.dataplane.meter import Meter
from bench.dataplane.requests import request

_REPLENISH = 2**24
"""Bytes of answers after which the peer's window is opened again."""


class _Call:
    """One running RPC."""

    __slots__ = ("before", "expected", "messages", "started", "tokens", "watched")

    def __init__(self, expected: int, watched: bool) -> None:
        self.expected = expected
        self.watched = watched
        self.messages = http2.Messages()
        self.started = time.perf_counter()
        self.before = 0.0
        self.tokens = 0


class LeanLoad(asyncio.Protocol):
    """One connection that keeps `streams` RPCs running, `watched` of them with their delays."""

    def __init__(
        self,
        target: str,
        authorization: str,
        meter: Meter,
        *,
        model: str,
        tokens: int,
        streams: int,
        watched: int,
        seed: int,
    ) -> None:
        self._target = target
        self._meter = meter
        self._model, self._tokens = model, tokens
        self._streams, self._watched = streams, watched
        self._request = request(model, tokens)
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._headers = _headers(target, authorization)
        self._buffer = bytearray()
        self._calls: dict[int, _Call] = {}
        self._next = 1
        self._unacknowledged = 0
        self._out: list[bytes] = []
        self._over: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    async def run(self) -> None:
        """Runs until cancelled; ends early, with an error counted, when the connection breaks."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        host, _, port = self._target.rpartition(":")
        transport, _ = await loop.create_connection(lambda: self, host, int(port))
        try:
            await self._over
            self._meter.errors["connection lost"] += 1
        finally:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)
        self._out += [http2.PREFACE, http2.opening()]
        for number in range(self._streams):
            length = self._random.randint(1, self._tokens)
            self._start(request(self._model, length), length, number < self._watched)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        now = time.perf_counter()
        for kind, flags, stream, payload in http2.frames(self._buffer):
            call = self._calls.get(stream)
            if kind == http2.DATA and call is not None:
                self._count(call, payload, now)
            elif kind == http2.RST_STREAM and call is not None:
                self._meter.errors["stream reset"] += 1
                self._replace(stream, call)
                continue
            elif kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
                answer = payload if kind == http2.PING else b""
                self._out.append(http2.frame(kind, http2.ACK, 0, answer))
            if flags & http2.END_STREAM and kind <= http2.HEADERS and call is not None:
                if call.tokens == call.expected:
                    self._meter.requests += 1
                else:
                    self._meter.errors[f"{call.tokens} of {call.expected} tokens"] += 1
                self._replace(stream, call)
        self._flush()

    def _count(self, call: _Call, payload: bytes, now: float) -> None:
        meter = self._meter
        self._unacknowledged += len(payload)
        found = call.messages.count(payload)
        if not found:
            return
        call.tokens += found
        meter.tokens += found
        meter.messages += found
        if not call.before:
            meter.ttfts.append(now - call.started)
        elif call.watched:
            meter.gaps += [now - call.before] + [0.0] * (found - 1)
        call.before = now

    def _replace(self, stream: int, call: _Call) -> None:
        del self._calls[stream]
        self._start(self._request, self._tokens, call.watched)

    def _start(self, raw: bytes, tokens: int, watched: bool) -> None:
        stream, self._next = self._next, self._next + 2
        self._calls[stream] = _Call(tokens, watched)
        self._out += (
            http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self._headers),
            http2.data(stream, raw, http2.END_STREAM),
        )

    def _flush(self) -> None:
        if self._unacknowledged > _REPLENISH:
            self._out.append(http2.window(0, self._unacknowledged))
            self._unacknowledged = 0
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()


def _headers(target: str, authorization: str) -> bytes:
    # 0x83 and 0x86 are POST and http in the static table.
    return b"\x83\x86" + b"".join(
        http2.literal(name, value)
        for name, value in (
            (b":path", b"/anabranch.v1.ModelService/StreamGenerate"),
            (b":authority", target.encode()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"authorization", authorization.encode()),
        )
    )
