"""Two questions beyond the matrix: what one cold message costs, and ten thousand streams.

A cold message finds the router idle: nothing is shared with other work. One answer is paced at
several speeds; the slope of CPU time over messages is the cost of a message, and what the router
spends on its own is the intercept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.dataplane.measure import Generator, Progress, Sample, look
from bench.dataplane.plan import Cell, Path
from bench.dataplane.stack import Stack
from bench.dataplane.summary import figure, slope

COLD_PACES = (10, 20, 40)
"""Milliseconds between the tokens of one answer."""

COLD_PATHS = (Path.ROUTER_SESSION, Path.ENVOY, Path.NGINX)

MANY_PACE = 200
MANY = (
    Cell(100, MANY_PACE, sessions=1),
    Cell(1_000, MANY_PACE, sessions=10),
    Cell(10_000, MANY_PACE, sessions=100),
)
"""Ten thousand streams, and what they grew from. 200 ms a token: two cores carry no more."""


@dataclass(frozen=True)
class Effort:
    """How often and how long, in seconds."""

    rounds: int
    warm: float
    window: float


async def cold(
    stack: Stack, generator: Generator, effort: Effort, progress: Progress
) -> dict[str, Any]:
    """CPU of one cold message on each path, in µs."""
    paths = [path for path in COLD_PATHS if path not in stack.absent()]
    costs: dict[Path, list[float]] = {path: [] for path in paths}
    own: dict[Path, list[float]] = {path: [] for path in paths}
    samples: list[Sample] = []
    for number in range(effort.rounds):
        for path in paths:
            points = []
            for pace in COLD_PACES:
                cell = Cell(1, pace, tokens=4096)
                sample = await look(
                    stack, generator, cell, path, warm=effort.warm, window=effort.window
                )
                samples.append(sample | {"round": number})
                used = sample["cpu_seconds"]["proxy"] / sample["seconds"]
                points.append((sample["messages"] / sample["seconds"], used * 1e6))
                progress.step(
                    f"cold, {pace} ms a token | {path.label}: "
                    f"{sample['cpu_us_per_token']:.0f} µs of CPU a token"
                )
            cost, rest = slope(points)
            costs[path].append(cost)
            own[path].append(rest)
    return {
        "paces_ms": COLD_PACES,
        "us_per_message": {path.value: figure(costs[path]) for path in paths},
        "own_us_per_second": {path.value: figure(own[path]) for path in paths},
        "samples": samples,
    }


async def many(
    stack: Stack, generator: Generator, effort: Effort, progress: Progress
) -> dict[str, Any]:
    """The router with up to ten thousand streams. The stack must be fresh: memory is counted."""
    found = []
    samples: list[Sample] = []
    for cell in MANY:
        mine = []
        for number in range(effort.rounds):
            sample = await look(
                stack,
                generator,
                cell,
                Path.ROUTER_SESSION,
                warm=effort.warm,
                window=effort.window,
            )
            grown = max(0, sample["rss_peak"] - sample["rss_before"]) / 1024 / cell.streams
            sample |= {"rss_kib_per_stream": grown, "round": number}
            mine.append(sample)
            progress.step(
                f"{cell.label}: {sample['cpu_us_per_token']:.2f} µs/token, "
                f"{grown:.1f} KiB a stream, {sum(sample['errors'].values())} errors"
            )
        samples += mine
        found.append(
            {
                "cell": cell.name,
                "streams": cell.streams,
                "sessions": cell.sessions,
                "errors": sum(sum(sample["errors"].values()) for sample in mine),
                "tokens_per_second": figure(s["tokens_per_second"] for s in mine),
                "cpu_us_per_token": figure(s["cpu_us_per_token"] for s in mine),
                # Later rounds find memory already taken: the first one tells.
                "rss_kib_per_stream": mine[0]["rss_kib_per_stream"],
                "rss_peak_mib": figure(s["rss_peak_mib"] for s in mine),
            }
        )
    return {"pace_ms": MANY_PACE, "rows": found, "samples": samples}
