"""From looks to figures and a page: medians with spread, ratios within a round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.cloud.plan import CANCEL_MS, CHUNK_US, CONTENDERS, MEMORY_MIB, REQUEST_MS

Record = Mapping[str, Any]
_OURS = CONTENDERS[0].name


def spread(values: Iterable[float], digits: int = 1) -> str:
    """ "median (least to greatest)", "-" without values."""
    found = sorted(values)
    if not found:
        return "-"
    middle = statistics.median(found)
    return f"{middle:.{digits}f} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


def table(record: Record) -> list[list[str]]:
    """The rows of the comparison, heads first: a column of chunks for each load."""
    loads = [load["name"] for load in record["plan"]["loads"]]
    heads = [f"µs a chunk, {name}" for name in loads]
    rows = [["reader", *heads, f"{loads[1]}: ÷ ours", f"ms a request, {loads[1]}"]]
    for contender in CONTENDERS:
        rows.append(
            [
                contender.name,
                *(spread(_values(record, name, contender.name, "chunk_us")) for name in loads),
                spread(_ratios(record, loads[1], contender.name), 2),
                spread(_values(record, loads[1], contender.name, "request_ms"), 2),
            ]
        )
    return rows


def _values(record: Record, load: str, name: str, key: str) -> list[float]:
    costs = (look["cost"][load].get(name) for look in record["looks"])
    return [cost[key] for cost in costs if cost is not None]


def _ratios(record: Record, load: str, name: str) -> list[float]:
    """What a chunk costs there by what it costs us, within each round."""
    mine = _values(record, load, name, "chunk_us")
    ours = _values(record, load, _OURS, "chunk_us")
    return [a / b for a, b in zip(mine, ours, strict=True)] if mine else []


def targets(record: Record) -> list[list[str]]:
    """What was to be reached, what was found, and whether it was."""
    rows = [["target", "found", "asked", ""]]
    looks = record["looks"]
    ours = [c.name for c in CONTENDERS if c.kind == "proxy"]
    for load in record["plan"]["loads"]:
        title = f"{load['name']} ({load['streams']} streams): µs CPU a chunk, socket to frame"
        for name in ours:
            values = _values(record, load["name"], name, "chunk_us")
            rows.append(_target(f"{title}, {name}", values, CHUNK_US, 1))
    for load in record["plan"]["loads"]:
        for name in ours:
            values = _values(record, load["name"], name, "request_ms")
            title = f"{load['name']}: ms CPU a request, {name}"
            rows.append(_target(title, values, REQUEST_MS, 2))
    streams = record["plan"]["many"]
    peaks = [look["memory"]["peak_mib"] for look in looks]
    rows.append(_target(f"MiB of a process with {streams:,} streams", peaks, MEMORY_MIB, 0))
    worst = [max(look["cancels"]) for look in looks]
    rows.append(_target("ms from cancel to closed socket, the longest", worst, CANCEL_MS, 1))
    return rows


def _target(title: str, values: Sequence[float], limit: float, digits: int) -> list[str]:
    verdict = "met" if values and statistics.median(values) <= limit else "**missed**"
    return [title, spread(values, digits), f"≤ {limit:.{digits}f}", verdict]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def page(record: Record, plot: str) -> str:
    """The whole page; `plot` is the picture's file name, empty for none."""
    return "\n".join(_lines(record, plot)) + "\n"


def _lines(record: Record, plot: str) -> Iterator[str]:
    where = record["circumstances"]["machine"]
    plan = record["plan"]
    yield "# Cloud proxy: what a streamed chunk costs\n"
    yield "Made by `make bench-cloud`; the figures are in the JSON file beside this page.\n"
    yield (
        f"{record['circumstances']['at']}, commit `{record['circumstances']['commit'][:12]}`. "
        f"{where['cores']} × {where['cpu']}, {where['memory_gib']} GiB, Linux {where['kernel']}, "
        f"load average before {where['load_average_before'][0]:.1f}.\n"
    )
    yield "Versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items() if v) + ".\n"
    yield markdown(targets(record)) + "\n"
    if plot:
        yield f"![CPU a chunk]({plot})\n"
    yield markdown(table(record)) + "\n"
    loads = "; ".join(
        f"*{load['name']}*, {load['streams']} answers at once, "
        + (f"a chunk every {load['pace'] * 1e3:g} ms" if load["pace"] else "as fast as they can")
        for load in plan["loads"]
    )
    yield (
        f"Medians over {len(record['looks'])} rounds, the least and the greatest in brackets; the "
        "ratio is taken within a round. All read the same mock provider on this machine, under "
        f"these loads: {loads}. The mock writes each chunk by itself. A chunk's cost is the slope "
        "between short and long answers, a request's what short ones cost beside their chunks.\n"
    )
    yield (
        "**What the load does.** A chunk that finds its process asleep pays for waking it: most of "
        "what it costs under the first load is the kernel's, and falls as more streams run. The "
        "figure to reach was set beside SDKs that read as fast as they could: the last load.\n"
    )
    yield (
        "**What is compared.** Our rows are the CPU of the whole proxy process: socket, framing, "
        "codec, chunk, session frame and HTTP/2 to the caller, with authentication, masking, "
        "accounting, metrics and logs as in production. The SDKs' rows are a process that reads "
        "the stream and does nothing with it, so they leave out half of that work. LiteLLM is its "
        "library, not its proxy. *aiohttp, bytes only* is what nobody can go below who uses it. "
        "All run on uvloop.\n"
    )
    yield (
        f"{plan['cancels']} cancels a round: median "
        f"{spread((statistics.median(look['cancels']) for look in record['looks']), 2)} ms from "
        "the caller's cancel frame to the moment when the provider loses the connection."
    )
