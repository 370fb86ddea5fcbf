"""What the engine is to reach, and whether a run has reached it. Pure: from the record.

Ratios are taken within a round where the paths took turns, and between rounds of the same number
where they did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.dataplane.targets import Verdict
from bench.engine import summary
from bench.engine.plan import Path

Record = Mapping[str, Any]

CANCEL_MS = 500.0
MOST = 512
"""Streams of the throughput targets on a GPU."""

_SHORT = {"tokens_per_second": "tokens/s", "tpot_p50_ms": "TPOT p50", "ttft_p50_ms": "TTFT p50"}


@dataclass(frozen=True)
class _Ratio:
    """A figure of one path over another's. `limit` None: told, not aimed at."""

    path: Path
    over: Path
    streams: int
    limit: float | None
    name: str = "tokens_per_second"
    at_most: bool = False


_LATENCY = (
    _Ratio(Path.SESSION, Path.ASYNC, 1, 1.02, "tpot_p50_ms", at_most=True),
    _Ratio(Path.SESSION, Path.ASYNC, 256, 1.0, "ttft_p50_ms", at_most=True),
)
_AIMS = {
    "gpu-small": (
        _Ratio(Path.SESSION, Path.OFFLINE, MOST, 0.90),
        _Ratio(Path.SESSION, Path.SERVE, MOST, 2.0),
        _Ratio(Path.SESSION, Path.ASYNC, MOST, None),
        _Ratio(Path.ROUTER, Path.SESSION, MOST, 0.97),
        _Ratio(Path.ROUTER, Path.SERVE, MOST, None),
        *_LATENCY,
    ),
    "gpu-large": (
        _Ratio(Path.SESSION, Path.OFFLINE, MOST, 0.97),
        _Ratio(Path.SESSION, Path.SERVE, MOST, 1.2),
        _Ratio(Path.ROUTER, Path.SESSION, MOST, 0.97),
        *_LATENCY,
    ),
    "cpu": (
        _Ratio(Path.SESSION, Path.SERVE, 16, 1.0),
        _Ratio(Path.SESSION, Path.SERVE, 64, 1.0),
        _Ratio(Path.SESSION, Path.OFFLINE, 64, None),
        _Ratio(Path.ROUTER, Path.SESSION, 64, 0.97),
        _Ratio(Path.SESSION, Path.ASYNC, 1, 1.02, "tpot_p50_ms", at_most=True),
    ),
}


def aims(plan: Record) -> str:
    """Which targets count for what was measured: made-up weights stand for a large model."""
    if plan["device"] != "gpu":
        return "cpu"
    return "gpu-large" if plan["model"]["load_format"] == "dummy" else "gpu-small"


def verdicts(record: Record) -> list[Verdict]:
    """Every target, also those that the run did not measure."""
    return list(_verdicts(record))


def _verdicts(record: Record) -> Iterator[Verdict]:
    samples = record["samples"]
    for aim in _AIMS[aims(record["plan"])]:
        yield Verdict(
            f"{aim.path.label}: {_SHORT[aim.name]}, × {aim.over.label}",
            f"{aim.streams} stream{'s' if aim.streams > 1 else ''}",
            "×",
            summary.ratio(samples, aim.path, aim.over, aim.streams, aim.name),
            aim.limit,
            aim.at_most,
        )
    # On a CPU one step takes as long: told, not aimed at.
    limit = None if aims(record["plan"]) == "cpu" else CANCEL_MS
    for name, what in (("slot_ms", "a free slot"), ("kv_ms", "free KV cache")):
        yield Verdict(
            f"{Path.SESSION.label}: from cancel to {what}",
            "all slots taken",
            "ms",
            summary.cancels(record, Path.SESSION, name),
            limit,
        )
