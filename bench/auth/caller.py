"""The process that calls the auth service: closed loops over gRPC, each answer timed.

    python -m bench.auth.caller <order.json >outcome.json

The order comes on standard input, since it holds credentials. It judges no answer: the outcome
says which statuses came, and how long each took.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, repeat
from typing import Any

import grpc

from bench.auth import cores

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to call. `classes` are kinds of serialised requests, in base64.

    With `each`, so many of each class are sent, in an order that `seed` shuffles; else the classes
    in turn for `seconds`. The first `warm` answers are not part of the outcome.
    """

    target: str
    method: str
    classes: tuple[tuple[str, ...], ...]
    in_flight: int
    each: int = 0
    seconds: float = 0.0
    warm: int = 0
    seed: int = 1

    def sequence(self) -> Iterator[tuple[int, bytes]]:
        """Class and request, in the order in which they are sent."""
        requests = [
            cycle([base64.b64decode(request) for request in requests]) for requests in self.classes
        ]
        if not self.each:
            turn = cycle(range(len(self.classes)))
            return ((kind, next(requests[kind])) for kind in turn)
        kinds = [kind for kind in range(len(self.classes)) for _ in range(self.each)]
        random.Random(self.seed).shuffle(kinds)  # noqa: S311 - an order, not a secret
        ahead = [kind for kind, _ in zip(cycle(range(len(self.classes))), repeat(0, self.warm))]
        return ((kind, next(requests[kind])) for kind in (*ahead, *kinds))


@dataclass(slots=True)
class Outcome:
    """What came. `times` are seconds of each class; `wall` and `cpu` seconds of the whole."""

    times: list[list[float]]
    statuses: dict[str, int] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def answers(self) -> int:
        """How many came, warm ones left out."""
        return sum(len(times) for times in self.times)


def encoded(requests: Sequence[Any]) -> tuple[str, ...]:
    """Messages as an order holds them."""
    return tuple(base64.b64encode(r.SerializeToString()).decode() for r in requests)


async def called(order: Order, core: int) -> Outcome:
    """Runs an order in a process of its own, on this core. Raises RuntimeError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.auth.caller", str(core)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complaint = await process.communicate(json.dumps(asdict(order)).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the caller failed: {complaint.decode(errors='replace')[-800:]}")
    return Outcome(**json.loads(said))


async def _run(order: Order) -> Outcome:
    outcome = Outcome([[] for _ in order.classes])
    statuses: Counter[str] = Counter()
    sequence = order.sequence()
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(order.target, options=options) as channel:
        await channel.channel_ready()
        ask = channel.unary_unary(f"/anabranch.v1.AuthService/{order.method}")

        async def some(until: float, requests: Iterator[tuple[int, bytes]]) -> None:
            for kind, request in requests:
                began = time.perf_counter()
                if began > until:
                    return
                try:
                    await ask(request, timeout=_TIMEOUT_S)
                    status = "OK"
                except grpc.aio.AioRpcError as error:
                    status = error.code().name
                    if status == "UNAVAILABLE":
                        status += f": {error.details()}"[:160]
                outcome.times[kind].append(time.perf_counter() - began)
                statuses[status] += 1

        async def together(until: float, requests: Iterator[tuple[int, bytes]]) -> None:
            await asyncio.gather(*(some(until, requests) for _ in range(order.in_flight)))

        await together(float("inf"), islice(sequence, order.warm))
        outcome.times = [[] for _ in order.classes]
        statuses.clear()
        cpu, began = time.process_time(), time.perf_counter()
        await together(began + order.seconds if not order.each else float("inf"), sequence)
        outcome.wall, outcome.cpu = time.perf_counter() - began, time.process_time() - cpu
    outcome.statuses = dict(statuses)
    return outcome


def main() -> int:
    """Reads the order, says the outcome."""
    # First of all: threads run where the one runs that starts them.
    cores.pin([os.getpid()], int(sys.argv[1]))
    given = json.load(sys.stdin)
    given["classes"] = tuple(tuple(requests) for requests in given["classes"])
    json.dump(asdict(asyncio.run(_run(Order(**given)))), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
