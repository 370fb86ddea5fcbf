"""What the data plane is to reach, and whether a run has reached it. Pure: from the record.

Ratios are taken within a round, as everywhere. Between Envoy's two kinds of ends, the claim is
made where both are grpc.aio; the page shows the other beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.dataplane.plan import ALONE, SHORT, Cell, Path
from bench.dataplane.summary import Figure, figure, pairs

Record = Mapping[str, Any]

_SESSION = Path.ROUTER_SESSION


@dataclass(frozen=True)
class Verdict:
    """One line of the table. `limit` None: told, not aimed at."""

    what: str
    where: str
    unit: str
    found: Figure
    limit: float | None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the limit; None without either."""
        median = self.found["median"]
        if median is None or self.limit is None:
            return None
        return median <= self.limit if self.at_most else median >= self.limit

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "what": self.what,
            "where": self.where,
            "unit": self.unit,
            "found": self.found,
            "limit": self.limit,
            "at_most": self.at_most,
            "met": self.met,
        }


@dataclass(frozen=True)
class _Ratio:
    """The session relay's figure over another path's, under one load."""

    cell: Cell
    over: Path
    limit: float | None
    name: str = "cpu_us_per_token"
    at_most: bool = True


_WORDS = {"cpu_us_per_token": "CPU a token", "tokens_per_second": "tokens/s"}
_RATIOS = (
    _Ratio(Cell(16, 20), Path.ENVOY, 1.0),
    _Ratio(Cell(64, 20), Path.ENVOY, 0.7),
    _Ratio(Cell(256, 20), Path.ENVOY, 0.4),
    _Ratio(Cell(64, 0), Path.ENVOY, 0.55),
    _Ratio(Cell(256, 0), Path.ENVOY, 0.30),
    _Ratio(Cell(64, 0), Path.ENVOY, 4.0, "tokens_per_second", at_most=False),
    _Ratio(Cell(256, 0), Path.ENVOY, None, "tokens_per_second", at_most=False),
    _Ratio(Cell(64, 20), Path.ENVOY_LEAN, None),
    _Ratio(Cell(256, 20), Path.ENVOY_LEAN, None),
    _Ratio(Cell(64, 20), Path.SMG_GRPC, 0.5),
    _Ratio(Cell(64, 20), Path.SMG, None),
    _Ratio(Cell(64, 20), Path.LITELLM, 0.04),
)

REQUESTS_PER_SECOND = 12_000.0
TTFT_P50_MS, TTFT_P99_MS = 0.7, 2.0
PLAIN_JITTER_MS = 5.0
COLD_US = 250.0
RSS_KIB = 40.0
GROWTH = 1.0
"""A token may cost no more at ten thousand streams than at a hundred."""


def verdicts(record: Record) -> list[Verdict]:
    """Every target, also those that the run did not measure."""
    return list(_verdicts(record))


def _verdicts(record: Record) -> Iterator[Verdict]:
    samples = record["samples"]
    for ratio in _RATIOS:
        yield Verdict(
            f"{_WORDS[ratio.name]}, × {ratio.over.label}",
            ratio.cell.label,
            "×",
            _ratio(samples, ratio),
            ratio.limit,
            ratio.at_most,
        )
    yield Verdict(
        "requests/s",
        SHORT.label,
        "",
        figure(_number(s, "requests_per_second") for s in of(samples, SHORT, _SESSION)),
        REQUESTS_PER_SECOND,
        at_most=False,
    )
    for name, limit in (("ttft_p50_ms", TTFT_P50_MS), ("ttft_p99_ms", TTFT_P99_MS)):
        yield Verdict(
            f"added TTFT {name[5:8]}", ALONE.label, "ms", _added(samples, ALONE, name), limit
        )
    yield Verdict(
        f"added jitter p99, {Path.ROUTER_PLAIN.label}",
        Cell(64, 20).label,
        "ms",
        _added(samples, Cell(64, 20), "jitter_p99_ms", Path.ROUTER_PLAIN),
        PLAIN_JITTER_MS,
    )
    yield from _cold(record.get("cold"))
    yield from _many(record.get("many"))


def _cold(cold: Record | None) -> Iterator[Verdict]:
    costs = cold["us_per_message"] if cold else {}
    mine, envoy = costs.get(_SESSION.value), costs.get(Path.ENVOY.value)
    nothing = figure(())
    yield Verdict("CPU of a cold message", "one answer", "µs", mine or nothing, COLD_US)
    ratio = mine["median"] / envoy["median"] if mine and envoy and envoy["median"] else math.nan
    yield Verdict(f"… × {Path.ENVOY.label}", "one answer", "×", figure([ratio]), None)


def _many(many: Record | None) -> Iterator[Verdict]:
    rows = many["rows"] if many else []
    last = rows[-1] if rows else None
    where = f"{last['streams']:,} streams" if last else "10,000 streams"
    memory = figure([last["rss_kib_per_stream"]] if last else ())
    yield Verdict("RSS a stream", where, "KiB", memory, RSS_KIB)
    costs = [row["cpu_us_per_token"]["median"] for row in rows]
    growth = costs[-1] / costs[0] if len(costs) > 1 and costs[0] and costs[-1] else math.nan
    start = f", × {rows[0]['streams']:,} streams" if rows else ""
    yield Verdict(f"CPU a token{start}", where, "×", figure([growth]), GROWTH)


def of(samples: Sequence[Record], cell: Cell, path: Path) -> list[Record]:
    """The looks at one path under one load."""
    return [s for s in samples if s["cell"] == cell.name and s["path"] == path.value]


def _ratio(samples: Sequence[Record], ratio: _Ratio) -> Figure:
    mine, other = (of(samples, ratio.cell, path) for path in (_SESSION, ratio.over))
    return figure(
        _number(a, ratio.name) / (_number(b, ratio.name) or math.nan) for a, b in pairs(mine, other)
    )


def _added(samples: Sequence[Record], cell: Cell, name: str, path: Path = _SESSION) -> Figure:
    """What a path adds to its own direct way."""
    mine, direct = (of(samples, cell, one) for one in (path, path.direct))
    return figure(_number(a, name) - _number(b, name) for a, b in pairs(mine, direct))


def _number(sample: Record, name: str) -> float:
    """A figure of a look; None is how JSON has NaN."""
    value = sample[name]
    return math.nan if value is None else float(value)


def headline(record: Record) -> str:
    """The run in one sentence; empty where it has not measured what the sentence says."""
    samples = record["samples"]

    def cost(cell: Cell, over: Path) -> float | None:
        return _ratio(samples, _Ratio(cell, over, None))["median"]

    envoy = [
        f"{value:.2f}× at {streams}"
        for streams in (16, 64, 256)
        if (value := cost(Cell(streams, 20), Path.ENVOY)) is not None
    ]
    if not envoy:
        return ""
    parts = [
        "With the engine paced at 20 ms a token, the router's session relay, with everything on, "
        f"spends {_and(envoy)} streams of the CPU a token that Envoy spends on plain RPCs"
    ]
    others = [
        f"{value:.2g}× of {name}'s"
        for name, path in (("SMG", Path.SMG_GRPC), ("LiteLLM", Path.LITELLM))
        if (value := cost(Cell(64, 20), path)) is not None
    ]
    if others:
        parts.append(f"{_and(others)} at 64 streams")
    requests = figure(_number(s, "requests_per_second") for s in of(samples, SHORT, _SESSION))
    if requests["median"] is not None:
        parts.append(f"carries {requests['median']:,.0f} requests of {SHORT.tokens} tokens/s")
    ttft = _added(samples, ALONE, "ttft_p50_ms")["median"]
    if ttft is not None:
        parts.append(f"adds {ttft:.2f} ms to the first token")
    machine = record["circumstances"]["machine"]
    return f"{_and(parts)} ({machine['cores']} × {machine['cpu']}, medians)."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
