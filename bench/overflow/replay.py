"""Sends a trace over sessions and notes when what comes back. It decides nothing but, for a
static cap, the tier: that is the one who counts what is in flight.

Lean on purpose, as the data plane's loads: raw grpc.aio, chunks kept undecoded until it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import grpc

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import relay_pb2
from bench.overflow.plan import Strategy
from bench.overflow.requests import TIMEOUT_S, request, residing
from bench.overflow.trace import Item

_METHOD = "/anabranch.v1.ModelService/Session"
_LOST = b""
_RESIDING = {
    value: residing(value)
    for value in (pb.RESIDENCY_LOCAL_FIRST, pb.RESIDENCY_LOCAL_ONLY, pb.RESIDENCY_CLOUD_ONLY)
}


class Flight:
    """One request on its way. Times are those of the clock, 0 until they are known."""

    __slots__ = (
        *("at", "chunks", "error", "first", "item", "last", "local", "over", "pause", "sent"),
        "tokens",
    )

    def __init__(self, item: Item, at: float, local: bool) -> None:
        self.item = item
        self.at = at
        self.local = local
        self.sent = self.first = self.last = self.pause = 0.0
        self.tokens = 0
        self.chunks: list[bytes] = []
        self.error: bytes | None = None
        self.over = False


class Caller:
    """One session. `on_end` is called for each request that is over."""

    def __init__(self, channel: grpc.aio.Channel, authorization: str, owner: Replay) -> None:
        self._call = channel.stream_stream(
            _METHOD, request_serializer=relay_pb2.RelaySessionRequest.SerializeToString
        )(metadata=(("authorization", authorization),))
        self._owner = owner
        self._number = 0
        self._flights: dict[int, Flight] = {}

    async def greet(self) -> None:
        """Waits until the session is there. Raises grpc.aio.AioRpcError."""
        await self._call.read()

    async def send(self, flights: Sequence[tuple[Flight, bytes]]) -> None:
        """Starts requests in one message."""
        frames = []
        for flight, raw in flights:
            self._number += 1
            self._flights[self._number] = flight
            frames.append(relay_pb2.RelaySessionRequestFrame(stream=self._number, start=raw))
        now = time.perf_counter()
        for flight, _ in flights:
            flight.sent = now
        await self._call.write(relay_pb2.RelaySessionRequest(frames=frames))

    async def read(self) -> None:
        """Reads until cancelled; when the session ends, so do its requests."""
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                self._take(raw)
        except grpc.aio.AioRpcError:
            pass
        finally:
            for flight in self._flights.values():
                flight.error = _LOST
                self._owner.ended(flight)
            self._flights.clear()
            self._call.cancel()

    def _take(self, raw: bytes) -> None:
        now = time.perf_counter()
        for frame in relay_pb2.RelaySessionResponse.FromString(raw).frames:
            flight = self._flights.get(frame.stream)
            if flight is None:
                continue
            if frame.chunk:
                flight.chunks.append(frame.chunk)
                flight.tokens += frame.tokens
                if frame.tokens:
                    if flight.first:
                        flight.pause = max(flight.pause, now - flight.last)
                    else:
                        flight.first = now
                    flight.last = now
                    self._owner.tokens += frame.tokens
            if frame.last:
                if not frame.chunk:
                    flight.error = frame.error
                del self._flights[frame.stream]
                self._owner.ended(flight)


class Replay:
    """A trace on its way. `flights` and `tokens`, all that came, may be read at any time."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        authorization: str,
        look: str,
        strategy: Strategy,
        cap: int,
    ) -> None:
        self._callers = [Caller(channel, authorization, self) for channel in channels]
        self._look = look
        self._strategy = strategy
        self._cap = cap
        self._changed = asyncio.Event()
        self._ready: dict[int, bytes] = {}
        self._running = self._running_locally = 0
        self.flights: list[Flight] = []
        self.tokens = 0
        self.began = 0.0

    async def open_loop(self, items: Sequence[Item]) -> None:
        """Sends each item when its time comes, whatever became of the others; waits for all."""
        async with self._reading(items):
            self.began = time.perf_counter()
            at = 0
            while at < len(items):
                now = time.perf_counter() - self.began
                due = list(_due(items, at, now))
                if not due:
                    await asyncio.sleep(items[at].at - now)
                    continue
                at += len(due)
                await self._send(due)
            await self._settled()

    async def closed_loop(self, items: Sequence[Item], running: int, seconds: float) -> None:
        """Keeps so many running for so long, each an item; waits for the last ones."""
        async with self._reading(items):
            self.began = time.perf_counter()
            left = iter(items)
            while time.perf_counter() - self.began < seconds:
                if batch := list(islice(left, running - self._running)):
                    await self._send(batch)
                self._changed.clear()
                await self._wait(0.05)
            await self._settled()

    def ended(self, flight: Flight) -> None:
        """A request is over."""
        flight.over = True
        self._running -= 1
        self._running_locally -= flight.local
        self._changed.set()

    def _reading(self, items: Sequence[Item]) -> _Reading:
        # Made before the first is due, so that a burst is sent at once.
        for item in items:
            self._ready[item.number] = request(self._look, item).SerializeToString()
        return _Reading(self._callers)

    async def _send(self, items: Sequence[Item]) -> None:
        batches: dict[int, list[tuple[Flight, bytes]]] = {}
        for item in items:
            residency = self._residency(item)
            local = residency != pb.RESIDENCY_CLOUD_ONLY
            flight = Flight(item, self.began + item.at, local)
            self.flights.append(flight)
            self._running += 1
            self._running_locally += local
            raw = self._ready[item.number] + _RESIDING[residency]
            batches.setdefault(item.number % len(self._callers), []).append((flight, raw))
        for number, batch in batches.items():
            await self._callers[number].send(batch)

    def _residency(self, item: Item) -> pb.Residency:
        if item.private or self._strategy is Strategy.LOCAL:
            return pb.RESIDENCY_LOCAL_ONLY
        if self._strategy is Strategy.ROUTER:
            return pb.RESIDENCY_LOCAL_FIRST
        if self._strategy is Strategy.CLOUD or self._running_locally >= self._cap:
            return pb.RESIDENCY_CLOUD_ONLY
        return pb.RESIDENCY_LOCAL_ONLY

    async def _settled(self) -> None:
        """Waits until all are over, which their own time limits bring about."""
        until = time.perf_counter() + TIMEOUT_S + 5.0
        while self._running and time.perf_counter() < until:
            self._changed.clear()
            await self._wait(1.0)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return


class _Reading:
    """All callers read while the context is entered."""

    def __init__(self, callers: Sequence[Caller]) -> None:
        self._callers = callers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        for caller in self._callers:
            await caller.greet()
        self._tasks = [asyncio.create_task(caller.read()) for caller in self._callers]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _due(items: Sequence[Item], at: int, now: float) -> Iterator[Item]:
    while at < len(items) and items[at].at <= now:
        yield items[at]
        at += 1
