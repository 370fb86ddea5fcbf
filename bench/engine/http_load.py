"""Asks vLLM's OpenAI server for streamed completions over the least HTTP/1.1 there is.

A connection for each running answer, as HTTP/1.1 has it, opened before the clock runs. Events are
counted and timed, not decoded, but for the usage at the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import cast

from bench.engine import cancelling
from bench.engine.flight import CancelOrder, Flight, Order

_TEXT = b'"text":'
"""In each event that carries output, and in no other."""

_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_END = b"0\r\n\r\n"
_LOOK_S = 300.0


def post(target: str, model: str, prompt: Sequence[int], tokens: int) -> bytes:
    """A greedy request of exactly so many tokens, as it is on the wire."""
    body = json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection, for one answer at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.flight = Flight()
        self._over: asyncio.Future[None] | None = None
        self._head: bytes | None = None
        self._tail = b""

    @classmethod
    async def to(cls, target: str) -> Connection:
        """An open one. Raises OSError."""
        host, _, port = target.rpartition(":")
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return protocol

    async def ask(self, raw: bytes) -> Flight:
        """Sends a request and waits for the end of its answer."""
        assert self._transport is not None
        self._over = asyncio.get_running_loop().create_future()
        flight = self.flight = Flight()
        self._head, self._tail = b"", b""
        flight.sent = time.monotonic()
        self._transport.write(raw)
        await self._over
        return flight

    def abort(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection lost")

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                self._fail((head.partition(b"\r\n")[0] + b" " + data[:200]).decode("latin-1"))
                return
            self._head = None
        # What one read has cut in two is whole with the end of the one before.
        joined = self._tail + data
        flight = self.flight
        events = joined.count(_TEXT) - self._tail.count(_TEXT)
        if events:
            if not flight.first:
                flight.first = now
            flight.last = now
            # At least: until the usage comes, which counts.
            flight.tokens += events
        if joined.endswith(_END):
            found_usage = _USAGE.search(joined)
            flight.tokens = int(found_usage[1]) if found_usage else 0
            self._finish()
        # Long enough for the usage, which comes last.
        self._tail = joined[-1024:]

    def _fail(self, why: str) -> None:
        if self._over is not None and not self._over.done():
            self.flight.error = why
            self._over.set_result(None)

    def _finish(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


async def load(order: Order) -> list[Flight]:
    """Carries the order out. Raises OSError."""
    most = max(len(wave) for wave in order.waves)
    connections = [await Connection.to(order.target) for _ in range(most)]
    waves = [[post(order.target, order.model, p, order.tokens) for p in w] for w in order.waves]
    flights: list[Flight] = []
    try:
        await asyncio.sleep(max(0.0, order.at - time.monotonic()))
        async with asyncio.timeout(_LOOK_S):
            for wave in waves:
                asked = zip(connections, wave, strict=False)
                flights += await asyncio.gather(*(one.ask(raw) for one, raw in asked))
    finally:
        for connection in connections:
            connection.abort()
    return flights


async def cancel(order: CancelOrder) -> dict[str, float]:
    """Closes the connection of one of the streams that fill the server, then of all but the one
    that waited; see cancelling.py. Raises OSError, TimeoutError, NotFull."""
    connections = [await Connection.to(order.target) for _ in order.prompts]
    raws = [post(order.target, order.model, p, order.tokens) for p in order.prompts]
    asked: list[asyncio.Task[Flight]] = []

    def ask(number: int) -> None:
        asked.append(asyncio.create_task(connections[number].ask(raws[number])))

    async def wait() -> Flight:
        ask(0)
        await asyncio.sleep(0)
        return connections[0].flight

    async def stop(count: int) -> None:
        for _ in range(count):
            connections.pop().abort()

    try:
        for number in range(1, len(connections)):
            ask(number)
        await asyncio.sleep(0)
        fillers = [connection.flight for connection in connections[1:]]
        return await cancelling.measure(fillers, wait, stop, lambda: kv_usage(order.metrics))
    finally:
        for connection in connections:
            connection.abort()
        await asyncio.gather(*asked)


_KV = re.compile(r"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)", re.MULTILINE)


async def kv_usage(target: str) -> float:
    """The share of the KV cache in use, by a metrics page."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET /metrics HTTP/1.0\r\nhost: {target}\r\n\r\n".encode())
        page = (await reader.read()).decode()
    finally:
        writer.close()
    return sum(map(float, _KV.findall(page)))
