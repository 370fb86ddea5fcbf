"""Takes the looks of a plan, path after path, round after round, and says how far it is.

The paths alternate within each round, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from bench import cpu
from bench.dataplane.fake_engine import model_name
from bench.dataplane.generator import Order
from bench.dataplane.plan import Cell, Path, Plan
from bench.dataplane.stack import Stack
from tools.cluster.recipes import ROOT

SATURATED = 0.9
"""Share of a core from which the generator or the engine may have been the bottleneck."""

NOISY = 0.2
"""Cores that other programs took, from which a look is doubtful."""

BEHIND = 0.9
"""Share of the paced engine's tokens below which something between engine and caller lags."""

_SETTLE_S = 0.2
_SETTLE_AT_MOST_S = 4.0
_IDLE = 0.1
"""Cores of a proxy that has nothing more to do."""

Sample = dict[str, Any]
Tell = Callable[[str], None]


_LONGEST_LINE = 2**24
"""Bytes of a result."""


class GeneratorError(Exception):
    """The load generator ended; the text says where."""


class Written(Protocol):
    """An order that can be sent to a generator."""

    def to_line(self) -> bytes:
        """As a line for it."""


class Generator:
    """A load generator's process, seen from here: orders in, results out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, module: str = "bench.dataplane.generator") -> AsyncIterator[Generator]:
        """Starts it; ends it when the context is left."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
        )
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def look(self, order: Written) -> Sample:
        """Has one order carried out. Raises GeneratorError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(order.to_line())
        await stdin.drain()
        line = await stdout.readline()
        if not line:
            status = await self._process.wait()
            raise GeneratorError(
                f"the load generator ended, exit status {status}; its last words, if any, are above"
            )
        result: Sample = json.loads(line)
        return result


async def look(
    stack: Stack, generator: Generator, cell: Cell, path: Path, *, warm: float, window: float
) -> Sample:
    """One look, with what follows from it."""
    order = Order(
        target=stack.target(path),
        form=path.form.value,
        model=model_name(cell.pace_ms),
        streams=cell.streams,
        connections=cell.connections(path.form),
        tokens=cell.tokens,
        warm=warm,
        window=window,
        authorization=await stack.authorization(),
        proxy=tuple(stack.proxy_pids(path)),
        engine=tuple(stack.engine_pids(path)),
        pace_ms=cell.pace_ms,
    )
    sample = await generator.look(order)
    await _settled(order)
    return sample | {"cell": cell.name, "path": path.value} | derived(sample, order)


async def _settled(order: Order) -> None:
    """Waits until the proxy has dropped what the end of a look cut off: the next one is not its."""
    until = time.monotonic() + _SETTLE_AT_MOST_S
    used = math.inf
    while used > _IDLE * _SETTLE_S and time.monotonic() < until:
        before = cpu.seconds(order.proxy)
        await asyncio.sleep(_SETTLE_S)
        used = cpu.seconds(order.proxy) - before


def derived(sample: Sample, order: Order) -> Sample:
    """What follows from a look: costs, and marks of what makes it doubtful."""
    used, seconds = sample["cpu_seconds"], sample["seconds"]
    cores = {name: value / seconds for name, value in used.items()}
    marks = [f"{name} saturated" for name in ("generator", "engine") if cores[name] >= SATURATED]
    if cores["others"] >= NOISY:
        marks.append("machine busy")
    if (
        order.pace_ms
        and sample["tokens_per_second"] < BEHIND * order.streams * 1000 / order.pace_ms
    ):
        marks.append("behind the pace")
    if not sample["tokens"]:
        marks.append("nothing arrived")
    if sample["errors"]:
        marks.append("errors")
    proxied = bool(order.proxy)
    return {
        "cores": cores,
        "cpu_us_per_token": _each(used["proxy"], sample["tokens"]) if proxied else math.nan,
        "cpu_us_per_request": _each(used["proxy"], sample["requests"]) if proxied else math.nan,
        "rss_peak_mib": sample["rss_peak"] / 2**20 if proxied else math.nan,
        "marks": marks,
    }


def _each(seconds: float, count: int) -> float:
    return seconds * 1e6 / count if count else math.nan


async def matrix(
    stack: Stack, generator: Generator, plan: Plan, progress: Progress
) -> list[Sample]:
    """Every look of a plan."""
    samples = []
    for cell in plan.cells:
        for number in range(plan.rounds):
            for path in plan.takes(cell):
                warm, window = plan.warm_of(cell, path), plan.window_of(path)
                sample = await look(stack, generator, cell, path, warm=warm, window=window)
                samples.append(sample | {"round": number})
                progress.step(f"{cell.label} | {path.label}: {in_short(sample)}")
    return samples


def in_short(sample: Sample) -> str:
    """One look in a few words."""
    parts = [f"{sample['tokens_per_second']:,.0f} tokens/s"]
    if not math.isnan(sample["cpu_us_per_token"]):
        parts.append(f"{sample['cpu_us_per_token']:.2f} µs/token")
    parts += sample["marks"]
    parts += [f"{count}× {what}" for what, count in sample["errors"].items()]
    return ", ".join(parts)


class Progress:
    """One line for each look, with an estimate of what is left."""

    def __init__(self, total: int, seconds: float, tell: Tell) -> None:
        self._total, self._tell = total, tell
        self._expected = seconds
        self._started = time.monotonic()
        self._done = 0

    def step(self, what: str) -> None:
        """One more is done."""
        self._done += 1
        passed = time.monotonic() - self._started
        share = self._done / self._total
        # The plan's own estimate counts until there is something to go by.
        left = (1 - share) * ((1 - share) * self._expected + share * passed / share)
        self._tell(f"[{self._done:3}/{self._total}, {span(left)} left] {what}")


def span(seconds: float) -> str:
    """A time for people."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
