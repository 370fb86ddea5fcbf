"""From looks to figures: medians over the rounds with their spread, and ratios. Pure.

Differences to the direct path and ratios to Envoy are taken within a round, then summed up: what
disturbed a round disturbed both sides of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.dataplane.plan import Cell, Form, Path

FIGURES = (
    "tokens_per_second",
    "requests_per_second",
    "tokens_per_message",
    "cpu_us_per_token",
    "cpu_us_per_request",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "gap_p50_ms",
    "gap_p99_ms",
    "jitter_p99_ms",
    "rss_peak_mib",
)
ADDED = ("ttft_p50_ms", "ttft_p99_ms", "gap_p99_ms")
"""Figures of which the difference to the direct path is taken."""

RATIOS = ("cpu_us_per_token", "cpu_us_per_request", "tokens_per_second", "requests_per_second")
"""Figures of which the ratio to Envoy is taken."""

YARDSTICKS = {Path.ENVOY: "envoy", Path.ENVOY_LEAN: "envoy_lean"}
"""Envoy between grpc.aio ends, and between lean ones."""

Figure = dict[str, float | None]
Sample = dict[str, Any]


def figure(values: Iterable[float]) -> Figure:
    """Median, least and greatest; None where there is nothing to sum up."""
    real = [value for value in values if not math.isnan(value)]
    if not real:
        return {"median": None, "min": None, "max": None}
    return {"median": statistics.median(real), "min": min(real), "max": max(real)}


def rows(cells: Sequence[Cell], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row for each cell and path that was looked at."""
    found = []
    for cell in cells:
        for path in Path:
            mine = _of(samples, cell, path)
            if mine:
                found.append(_row(cell, path, mine, samples))
    return found


def _row(
    cell: Cell, path: Path, mine: Sequence[Sample], samples: Sequence[Sample]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cell": cell.name,
        "streams": cell.streams,
        "sessions": cell.connections(Form.SESSION),
        "pace_ms": cell.pace_ms,
        "tokens": cell.tokens,
        "path": path.value,
        "rounds": len(mine),
    }
    for name in FIGURES:
        row[name] = figure(sample[name] for sample in mine)
    for name in ("generator", "engine", "proxy", "others"):
        row[f"cores_{name}"] = figure(sample["cores"][name] for sample in mine)
    direct = _of(samples, cell, path.direct)
    if path is not path.direct and direct:
        for name in ADDED:
            row[f"added_{name}"] = figure(a[name] - b[name] for a, b in pairs(mine, direct))
    for yardstick, short in YARDSTICKS.items():
        envoy = _of(samples, cell, yardstick)
        if path is not path.direct and envoy:
            for name in RATIOS:
                row[f"{name}_to_{short}"] = figure(
                    a[name] / b[name] if b[name] else math.nan for a, b in pairs(mine, envoy)
                )
    marks = {mark for sample in mine for mark in sample["marks"]}
    row["marks"] = sorted(
        f"{mark} in {sum(mark in sample['marks'] for sample in mine)}/{len(mine)}" for mark in marks
    )
    return row


def _of(samples: Sequence[Sample], cell: Cell, path: Path) -> list[Sample]:
    return [s for s in samples if s["cell"] == cell.name and s["path"] == path.value]


def pairs(
    mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Looks of the same round, side by side."""
    by_round = {sample["round"]: sample for sample in other}
    return [(s, by_round[s["round"]]) for s in mine if s["round"] in by_round]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    fit = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return fit.slope, fit.intercept


def plain_json(value: Any) -> Any:
    """The value with None for NaN, which JSON does not have."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value
