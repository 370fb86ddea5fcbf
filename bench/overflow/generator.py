"""The load generator, a process of its own: one JSON order a line in, one JSON result a line out.

It also reads the books of the processes under test, second by second, and its own. It decides
nothing: what to send is the order's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from anabranch.v1 import generation_pb2 as pb
from bench import cpu
from bench.overflow import outcome, requests, trace
from bench.overflow.outcome import Outcome
from bench.overflow.plan import Phase, Strategy
from bench.overflow.replay import Flight, Replay
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_status, reason_name

_TIERS = {pb.TIER_LOCAL: outcome.LOCAL, pb.TIER_CLOUD: outcome.CLOUD}
_OVERFLOW = "OVERFLOW_REASON_"


@dataclass(frozen=True)
class Order:
    """One look. Not logged: it holds a token.

    `rate` is in requests a second where the load is 1. With `closed`, so many requests are kept
    running for the phases' time, and the trace says only what they are.
    """

    look: str
    target: str
    authorization: str
    strategy: str
    cap: int
    seed: str
    rate: float
    phases: Sequence[Sequence[float]]
    private: float
    sessions: int
    watched: Mapping[str, Sequence[int]]
    """The processes under test, by name."""
    closed: int = 0
    warm: float = 0.0
    """Seconds of a closed loop that are not counted."""

    def to_line(self) -> bytes:
        """As a line for the generator."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Books:
    """Second by second: the cores that each process used, and how long it waited for one."""

    def __init__(self, watched: Mapping[str, Sequence[int]]) -> None:
        self._watched = {**watched, "generator": [os.getpid()]}
        self.cores: list[dict[str, float]] = []
        self.waits: list[dict[str, float]] = []

    async def keep(self) -> None:
        """Writes a line a second, until cancelled."""
        before, waited, since = self._used(), self._waited(), time.perf_counter()
        while True:
            await asyncio.sleep(1.0)
            after, waits, now = self._used(), self._waited(), time.perf_counter()
            used = {name: (after[name] - before[name]) / (now - since) for name in after}
            ours = sum(used.values()) - used["machine"]
            self.cores.append(used | {"others": max(0.0, used["machine"] - ours)})
            self.waits.append({name: waits[name] - waited[name] for name in waits})
            before, waited, since = after, waits, now

    def _used(self) -> dict[str, float]:
        books = {name: cpu.seconds(pids) for name, pids in self._watched.items()}
        return books | {"machine": cpu.machine_busy()}

    def _waited(self) -> dict[str, float]:
        return {name: cpu.waited(pids) for name, pids in self._watched.items()}


async def look(order: Order) -> dict[str, Any]:
    """Carries out one order."""
    phases = [Phase(*values) for values in order.phases]
    items = trace.make(order.seed, order.rate, phases, order.private)
    # A pool of its own gives each channel a connection of its own.
    channels = [
        open_channel(order.target, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(order.sessions)
    ]
    books = Books(order.watched)
    replay = Replay(channels, order.authorization, order.look, Strategy(order.strategy), order.cap)
    keeping = asyncio.create_task(books.keep())
    try:
        if order.closed:
            result = await _saturate(replay, items, order, sum(p.seconds for p in phases))
        else:
            await replay.open_loop(items)
            outcomes = [await _outcome(order, flight, replay) for flight in replay.flights]
            result = {"outcomes": [one.to_json() for one in outcomes]}
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        for channel in channels:
            await channel.close()
    return result | {"cores": books.cores, "waits": books.waits}


async def _saturate(
    replay: Replay, items: Sequence[trace.Item], order: Order, seconds: float
) -> dict[str, Any]:
    """Tokens a second with every slot taken."""

    async def count() -> float:
        await asyncio.sleep(order.warm)
        before, since = replay.tokens, time.perf_counter()
        await asyncio.sleep(seconds - order.warm - 0.1)
        return (replay.tokens - before) / (time.perf_counter() - since)

    async with asyncio.TaskGroup() as tasks:
        counted = tasks.create_task(count())
        tasks.create_task(replay.closed_loop(items, order.closed, seconds))
    return {"tokens_per_second": counted.result()}


async def _outcome(order: Order, flight: Flight, replay: Replay) -> Outcome:
    """What became of a request, and whether every token is right."""
    began, item = replay.began, flight.item
    known: dict[str, Any] = {
        "number": item.number,
        "private": item.private,
        "wanted": item.output,
        "at": item.at,
        "sent": flight.sent - began,
        "first": flight.first - began if flight.first else None,
        "last": flight.last - began if flight.last else None,
        "tokens": flight.tokens,
        "pause": flight.pause,
    }
    if flight.error is not None or not flight.over:
        return Outcome(**known, failure=_failure(flight))
    chunks = [pb.GenerateChunk.FromString(raw) for raw in flight.chunks]
    ending = chunks[-1]
    receipt = ending.receipt
    attempts = receipt.attempts
    overflow = pb.OverflowReason.Name(receipt.overflow_reason).removeprefix(_OVERFLOW)
    finish = ending.finish_reason
    return Outcome(
        **known,
        tier=_TIERS.get(receipt.tier, ""),
        backend=receipt.backend_id,
        overflow="" if overflow == "UNSPECIFIED" else overflow,
        cost=receipt.cost_microusd,
        queued=receipt.queue_time.ToNanoseconds() / 1e9,
        predicted=receipt.predicted_ttft.ToNanoseconds() / 1e9,
        failed_at=[one.backend_id for one in attempts if one.error_reason],
        resumed_at=list(receipt.resumed_at_tokens),
        failure="" if finish == pb.FINISH_REASON_LENGTH else pb.FinishReason.Name(finish),
        exact=await _is_exact(order.look, item, chunks, receipt.tier),
    )


async def _is_exact(
    name: str, item: trace.Item, chunks: Sequence[pb.GenerateChunk], tier: int
) -> bool:
    """Whether the answer is, token by token, the one that nothing disturbed."""
    asked = requests.request(name, item)
    if tier == pb.TIER_CLOUD:
        return "".join(chunk.text for chunk in chunks) == requests.cloud_answer(asked)
    position = 0
    for chunk in chunks:
        if chunk.token_ids and chunk.first_token != position:
            return False
        position += len(chunk.token_ids)
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    return tokens == await requests.local_answer(asked)


def _failure(flight: Flight) -> str:
    if not flight.over:
        return "NEVER_ENDED"
    if not flight.error:
        return "SESSION_LOST"
    try:
        return reason_name(fault_from_status(status_pb2.Status.FromString(flight.error)).reason)
    except DecodeError:
        return "UNREADABLE"


def main() -> int:
    """Serves orders until its input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            order = Order(**json.loads(line))
            print(json.dumps(runner.run(look(order))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
