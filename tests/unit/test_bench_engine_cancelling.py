"""The time from a cancel to a free slot is only told of an engine that was full."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.engine import cancelling
from bench.engine.flight import Flight


class Engine:
    """Gives each running stream a token a step; has so many slots, and frees them `late`."""

    def __init__(self, slots: int, late: float = 0.0) -> None:
        self._slots = slots
        self._late = late
        self._queue: list[Flight] = []
        self._free_at: list[float] = []
        self.running: list[Flight] = []

    def start(self) -> Flight:
        flight = Flight(sent=time.monotonic())
        self._queue.append(flight)
        return flight

    async def cancel(self, count: int) -> None:
        for _ in range(count):
            self.running.pop(0)
            self._free_at.append(time.monotonic() + self._late)

    async def steps(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            self._free_at = [at for at in self._free_at if at > now]
            while self._queue and len(self.running) + len(self._free_at) < self._slots:
                self.running.append(self._queue.pop(0))
            for flight in self.running:
                flight.first = flight.first or now
                flight.tokens += 1

    async def kv_used(self) -> float:
        return float(len(self.running) + len(self._free_at))


async def measured(engine: Engine, streams: int) -> dict[str, float]:
    stepping = asyncio.create_task(engine.steps())

    async def wait() -> Flight:
        return engine.start()

    try:
        fillers = [engine.start() for _ in range(streams)]
        return await cancelling.measure(fillers, wait, engine.cancel, engine.kv_used)
    finally:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)


async def test_a_slot_that_is_kept_shows_in_the_wait_for_it_and_in_the_cache():
    found = await measured(Engine(8, late=0.1), 8)
    assert found["slot_ms"] >= 100
    assert found["kv_ms"] >= 100


async def test_an_engine_with_a_slot_left_shows_nothing():
    with pytest.raises(cancelling.NotFull):
        await measured(Engine(9), 8)
