"""From looks to rows: medians over the rounds with their spread, ratios within a round. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.dataplane.summary import Figure, figure, pairs
from bench.engine.plan import Path

Record = Mapping[str, Any]

FIGURES = (
    "tokens_per_second",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "goodput",
    "within",
    "cpu_us_per_token",
    "server_cores",
    "generator_cores",
)


def number(sample: Record, name: str) -> float:
    """A figure of a look; None is how JSON has NaN."""
    value = sample[name]
    return math.nan if value is None else float(value)


def of(samples: Sequence[Record], path: Path, streams: int) -> list[Record]:
    """The looks at a path with so many streams."""
    return [s for s in samples if s["path"] == path.value and s["streams"] == streams]


def rows(record: Record) -> list[dict[str, Any]]:
    """A row for each number of streams and path that was looked at."""
    samples = record["samples"]
    found = []
    for streams in sorted({sample["streams"] for sample in samples}):
        for path in Path:
            mine = of(samples, path, streams)
            if mine:
                found.append(_row(samples, mine, path, streams))
    return found


def _row(
    samples: Sequence[Record], mine: Sequence[Record], path: Path, streams: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path.value, "streams": streams, "rounds": len(mine)}
    for name in FIGURES:
        row[name] = figure(number(sample, name) for sample in mine)
    for other in (Path.OFFLINE, Path.SERVE):
        row[f"to_{other.value}"] = ratio(samples, path, other, streams)
    marks = {mark for sample in mine for mark in sample["marks"]}
    row["marks"] = sorted(
        f"{mark} in {sum(mark in sample['marks'] for sample in mine)}/{len(mine)}" for mark in marks
    )
    return row


def ratio(
    samples: Sequence[Record],
    path: Path,
    over: Path,
    streams: int,
    name: str = "tokens_per_second",
) -> Figure:
    """A path's figure over another's, within each round."""
    return figure(
        _over(number(a, name), number(b, name))
        for a, b in pairs(of(samples, path, streams), of(samples, over, streams))
    )


def _over(one: float, other: float) -> float:
    return one / other if other else math.nan


def cancels(record: Record, path: Path, name: str) -> Figure:
    """Milliseconds from cancels to what `name` says."""
    return figure(number(one, name) for one in record["cancels"] if one["path"] == path.value)
