"""How far processes that share a quota exceed it: with Redis, as it stops, returns or hangs.

Some processes ask together for three times what a quota allows. Prints JSON: what was let through
against burst and rate, over the whole run and in the worst window of the quota's period, and what
a decision took. It judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.redis_connection import open_redis
from services.chassis.settings import Secret
from tests.support.redis import redis_server

_SETTLING_S = 1.0
_SCENES = ("up", "stops", "stops and returns", "hangs", "never there")


@dataclass(frozen=True, slots=True)
class Load:
    """What is offered. Seconds, and requests a second of all processes together."""

    processes: int
    limit: int
    period: int
    burst: int
    offered: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of one scene. Latencies in milliseconds; percentages of what was allowed."""

    scene: str
    offered: int
    admitted: int
    allowed: float
    overshoot_percent: float
    worst_window_overshoot_percent: float
    decision_ms_p50: float
    decision_ms_p99: float
    decision_ms_max: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all scenes and prints their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--limit", type=int, default=1000, help="requests in a period")
    parser.add_argument("--period", type=int, default=5, help="seconds")
    parser.add_argument("--burst", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15.0)
    asked = parser.parse_args(arguments)
    offered = 3.0 * asked.limit / asked.period
    load = Load(asked.processes, asked.limit, asked.period, asked.burst, offered, asked.seconds)
    results = [_scene(name, load) for name in _SCENES]
    json.dump(
        {"load": asdict(load), "scenes": [asdict(result) for result in results]},
        sys.stdout,
        indent=2,
    )
    print()


def _scene(name: str, load: Load) -> Result:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        if name == "never there":
            redis.kill()
        context = multiprocessing.get_context("spawn")
        begins = time.monotonic() + _SETTLING_S + 1.5 * load.processes
        ends: list[Connection] = []
        for number in range(load.processes):
            ours, theirs = context.Pipe()
            url = redis.url.reveal()
            process = context.Process(target=_process, args=(number, load, url, begins, theirs))
            process.start()
            stack.callback(process.join)
            ends.append(ours)
        if name.startswith("stops"):
            _sleep_until(begins + load.seconds / 3)
            redis.kill()
        if name == "stops and returns":
            _sleep_until(begins + load.seconds * 2 / 3)
            stack.enter_context(redis_server(port=redis.port, password=redis.password))
        if name == "hangs":
            _sleep_until(begins + load.seconds / 3)
            with redis.frozen():
                _sleep_until(begins + load.seconds * 2 / 3)
        found = [end.recv() for end in ends]
    admitted = sorted(at for times, _, _ in found for at in times)
    took = sorted(seconds for _, latencies, _ in found for seconds in latencies)
    rate = load.limit / load.period
    allowed = load.burst + rate * (admitted[-1] - begins)
    window = _worst_window(admitted, load.period)
    return Result(
        scene=name,
        offered=sum(count for _, _, count in found),
        admitted=len(admitted),
        allowed=round(allowed, 1),
        overshoot_percent=round(100 * (len(admitted) / allowed - 1), 2),
        worst_window_overshoot_percent=round(100 * (window / (load.burst + load.limit) - 1), 2),
        decision_ms_p50=round(1000 * statistics.median(took), 3),
        decision_ms_p99=round(1000 * took[int(len(took) * 0.99)], 3),
        decision_ms_max=round(1000 * took[-1], 3),
    )


def _worst_window(times: Sequence[float], seconds: float) -> int:
    """The most in any window of so many seconds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] < at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def _sleep_until(moment: float) -> None:
    time.sleep(max(moment - time.monotonic(), 0.0))


def _process(number: int, load: Load, url: str, begins: float, results: Connection) -> None:
    results.send(asyncio.run(_ask(number, load, Secret(url), begins)))
    results.close()


async def _ask(
    number: int, load: Load, url: Secret, begins: float
) -> tuple[list[float], list[float], int]:
    """When requests were admitted, what each decision took, and how many there were."""
    redis = open_redis(url)
    gate = QuotaGate(redis, lambda: load.processes)
    running = asyncio.create_task(gate.run())
    rule = QuotaRule(Subject.TENANT, Unit.REQUESTS, load.limit, load.period, load.burst)
    caller = Principal("bench", "bench", frozenset(), 2e9, "t", quotas=(rule,))
    admitted: list[float] = []
    took: list[float] = []
    spread = random.Random(number)  # noqa: S311 - arrivals, and nothing secret

    async def one() -> None:
        began = time.monotonic()
        try:
            gate.settle(await gate.reserve(caller, "river", 1), 1)
            admitted.append(time.monotonic())
        except Fault:
            pass
        took.append(time.monotonic() - began)

    try:
        await asyncio.sleep(max(begins - time.monotonic(), 0.0))
        at, asked = begins, 0
        async with asyncio.TaskGroup() as group:
            while True:
                at += spread.expovariate(load.offered / load.processes)
                if at > begins + load.seconds:
                    break
                await asyncio.sleep(max(at - time.monotonic(), 0.0))
                group.create_task(one())
                asked += 1
    finally:
        running.cancel()
        await asyncio.wait([running])
        await redis.aclose()
    return admitted, took, asked


if __name__ == "__main__":
    main()
