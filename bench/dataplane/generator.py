"""The load generator, a process of its own: one JSON order a line in, one JSON result a line out.

It also reads the books of the processes under test at the very moments when its look begins and
ends, and its own. It decides nothing: what to look at is the order's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from bench import cpu
from bench.dataplane.lean_load import LeanLoad
from bench.dataplane.loads import PlainLoad, SessionLoad
from bench.dataplane.meter import WATCHED, Meter
from bench.dataplane.openai_load import OpenAILoad
from bench.dataplane.plan import Form
from services.chassis.channels import open_channel

_LATE_S = 6.0
"""Seconds beyond its warm-up after which a look begins, whatever has begun."""


@dataclass(frozen=True)
class Order:
    """One look at one path under one load. Not logged: it holds a token."""

    target: str
    form: str
    model: str
    streams: int
    connections: int
    tokens: int
    warm: float
    window: float
    authorization: str
    proxy: tuple[int, ...]
    """The processes of the proxy under test; none on a direct path."""
    engine: tuple[int, ...]
    pace_ms: int = 0
    """Of the model's steps."""

    def to_line(self) -> bytes:
        """As a line for the generator."""
        return json.dumps(asdict(self)).encode() + b"\n"


class _Books:
    """CPU seconds by now."""

    def __init__(self, order: Order) -> None:
        self.time = time.perf_counter()
        self.proxy = cpu.seconds(order.proxy)
        self.engine = cpu.seconds(order.engine)
        self.generator = time.process_time()
        self.machine = cpu.machine_busy()

    def since(self, before: _Books) -> dict[str, float]:
        """What was used in between, in CPU seconds."""
        used = {
            name: getattr(self, name) - getattr(before, name)
            for name in ("proxy", "engine", "generator", "machine")
        }
        ours = used["proxy"] + used["engine"] + used["generator"]
        return used | {"others": max(0.0, used["machine"] - ours)}


async def look(order: Order) -> dict[str, Any]:
    """Carries out one order."""
    meter = Meter()
    metadata = (("authorization", order.authorization),)
    # A pool of its own gives each channel a connection of its own.
    channels = [
        open_channel(order.target, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(order.connections if order.form in (Form.SESSION, Form.PLAIN) else 0)
    ]
    rss_before = cpu.resident(order.proxy)
    work = [asyncio.create_task(load.run()) for load in _loads(order, channels, metadata, meter)]
    try:
        await asyncio.sleep(order.warm)
        await _under_way(meter, order.streams)
        cpu.reset_peak(order.proxy)
        meter.reset()
        before = _Books(order)
        await asyncio.sleep(order.window)
        after = _Books(order)
        result = meter.summary(after.time - before.time)
        result["cpu_seconds"] = after.since(before)
        result["rss_before"] = rss_before
        result["rss_peak"] = cpu.peak(order.proxy)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        for channel in channels:
            await channel.close()
    return result


async def _under_way(meter: Meter, streams: int) -> None:
    """Waits until as many answers have begun as are to run, for a proxy may take its time."""
    until = time.perf_counter() + _LATE_S
    while len(meter.ttfts) < streams and time.perf_counter() < until:  # noqa: ASYNC110 - hot path
        await asyncio.sleep(0.05)


def _loads(
    order: Order, channels: list[Any], metadata: tuple[tuple[str, str], ...], meter: Meter
) -> list[SessionLoad] | list[PlainLoad] | list[LeanLoad] | list[OpenAILoad]:
    if order.form == Form.HTTP:
        return [
            OpenAILoad(
                order.target,
                meter,
                pace_ms=order.pace_ms,
                tokens=order.tokens,
                watched=number < WATCHED,
                seed=number,
            )
            for number in range(order.streams)
        ]
    if order.form == Form.LEAN:
        return [
            LeanLoad(
                order.target,
                order.authorization,
                meter,
                model=order.model,
                tokens=order.tokens,
                streams=_share(order.streams, order.connections, number),
                watched=_share(min(WATCHED, order.streams), order.connections, number),
                seed=number,
            )
            for number in range(order.connections)
        ]
    if order.form == Form.SESSION:
        return [
            SessionLoad(
                channel,
                metadata,
                meter,
                model=order.model,
                tokens=order.tokens,
                streams=_share(order.streams, len(channels), number),
                watched=_share(min(WATCHED, order.streams), len(channels), number),
                seed=number,
            )
            for number, channel in enumerate(channels)
        ]
    return [
        PlainLoad(
            channels[number % len(channels)],
            metadata,
            meter,
            model=order.model,
            tokens=order.tokens,
            watched=number < WATCHED,
            seed=number,
        )
        for number in range(order.streams)
    ]


def _share(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


def main() -> int:
    """Serves orders until its input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            order = Order(**json.loads(line))
            print(json.dumps(runner.run(look(order))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
