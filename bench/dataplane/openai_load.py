"""Streamed chat completions over the least HTTP/1.1 there is: a caller leaner than any gateway.

One connection for each running answer, as HTTP/1.1 has it, kept from one request to the next. A
token is known by its text, which gateways may wrap in what JSON they like; nothing is decoded.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import cast

from bench.dataplane.meter import Meter
from bench.dataplane.requests import WORD, chat

_MARK = WORD.strip().encode()
_END = b"0\r\n\r\n"
_PAUSE_S = 0.05


class OpenAILoad(asyncio.Protocol):
    """One slot that keeps one answer running. `watched`: the delays of its tokens are recorded."""

    def __init__(
        self, target: str, meter: Meter, *, pace_ms: int, tokens: int, watched: bool, seed: int
    ) -> None:
        self._target = target
        self._meter = meter
        self._watched = watched
        self._request = _post(target, chat(pace_ms, tokens))
        self._tokens = tokens
        # The same lengths in every run; nothing secret hangs on them.
        self._expected = random.Random(seed).randint(1, tokens)  # noqa: S311
        self._next = _post(target, chat(pace_ms, self._expected))
        self._transport: asyncio.Transport | None = None
        self._over: asyncio.Future[None] | None = None
        self._raw: list[bytes] = []
        self._tail = b""
        self._head: bytes | None = b""
        self._started = self._before = 0.0
        self._seen = 0

    async def run(self) -> None:
        """Runs until cancelled. A failed answer is counted, and followed by another."""
        loop = asyncio.get_running_loop()
        host, _, port = self._target.rpartition(":")
        while True:
            self._over = loop.create_future()
            try:
                transport, _ = await loop.create_connection(lambda: self, host, int(port))
            except OSError as error:
                self._meter.errors[f"connect: {error.strerror}"] += 1
            else:
                try:
                    await self._over
                finally:
                    transport.abort()
            await asyncio.sleep(_PAUSE_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over is not None and not self._over.done():
            self._fail("connection lost")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                self._fail(head.partition(b"\r\n")[0].decode("latin-1"))
                return
            self._head = None
        self._raw.append(data)
        # What one read has cut in two is whole with the end of the one before.
        data = self._tail + data
        self._tail = data[1 - len(_MARK) :]
        found_tokens = data.count(_MARK)
        if found_tokens:
            self._count(found_tokens, now)
        if data.endswith(_END):
            self._finish(now)

    def _count(self, found: int, now: float) -> None:
        meter = self._meter
        self._seen += found
        meter.tokens += found
        meter.messages += found
        if not self._before:
            meter.ttfts.append(now - self._started)
        elif self._watched:
            meter.gaps += [now - self._before] + [0.0] * (found - 1)
        self._before = now

    def _finish(self, now: float) -> None:
        if self._seen != self._expected:
            # A gateway may cut a token in two with its own chunks: seen only without them.
            missing = unchunked(b"".join(self._raw)).count(_MARK) - self._seen
            if missing > 0:
                self._count(missing, now)
        if self._seen == self._expected:
            self._meter.requests += 1
        else:
            self._meter.errors[f"{self._seen} of {self._expected} tokens"] += 1
        self._expected, self._next = self._tokens, self._request
        self._ask()

    def _ask(self) -> None:
        self._head, self._tail = b"", b""
        self._raw.clear()
        self._seen, self._before = 0, 0.0
        self._started = time.perf_counter()
        if self._transport is not None:
            self._transport.write(self._next)

    def _fail(self, why: str) -> None:
        self._meter.errors[why] += 1
        self._expected, self._next = self._tokens, self._request
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


def unchunked(raw: bytes) -> bytes:
    """The content of a whole body in HTTP/1.1's chunked transfer coding (RFC 9112, 7.1)."""
    content: list[bytes] = []
    at = 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(content)
        content.append(raw[end + 2 : end + 2 + size])
        at = end + 4 + size


def _post(target: str, body: bytes) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {target}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer sk-bench\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
