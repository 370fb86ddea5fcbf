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
    """The rows of the comparison, heads first."""
    rows = [["reader", "µs CPU a chunk", "ms CPU a request", "chunk ÷ ours"]]
    ours = [look["cost"].get(_OURS) for look in record["looks"]]
    for contender in CONTENDERS:
        mine = [look["cost"].get(contender.name) for look in record["looks"]]
        found = [cost for cost in mine if cost is not None]
        ratios = [
            cost["chunk_us"] / own["chunk_us"]
            for cost, own in zip(mine, ours, strict=True)
            if cost is not None and own is not None
        ]
        rows.append(
            [
                contender.name,
                spread(c["chunk_us"] for c in found),
                spread((c["request_ms"] for c in found), 2),
                spread(ratios, 2),
            ]
        )
    return rows


def targets(record: Record) -> list[list[str]]:
    """What was to be reached, what was found, and whether it was."""
    rows = [["target", "found", "asked", ""]]
    looks = record["looks"]
    ours = [c.name for c in CONTENDERS if c.kind == "proxy"]
    for key, title, limit, digits in (
        ("chunk_us", "µs CPU from socket to session frame, a chunk", CHUNK_US, 1),
        ("request_ms", "ms CPU a request", REQUEST_MS, 2),
    ):
        for name in ours:
            values = [look["cost"][name][key] for look in looks if name in look["cost"]]
            rows.append(_target(f"{title}: {name}", values, limit, digits))
    streams = record["plan"]["many"]
    peaks = [look["memory"]["peak_mib"] for look in looks]
    rows.append(_target(f"MiB of a process with {streams:,} streams", peaks, MEMORY_MIB, 0))
    worst = [max(look["cancels"]) for look in looks]
    rows.append(_target("ms from cancel to closed socket, the longest", worst, CANCEL_MS, 1))
    return rows


def _target(title: str, values: Sequence[float], limit: float, digits: int) -> list[str]:
    verdict = "met" if values and statistics.median(values) <= limit else "missed"
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
    yield (
        f"Medians over {len(looks) if (looks := record['looks']) else 0} rounds, the least and the "
        "greatest in brackets; the ratio is taken within a round. All read the same mock provider "
        f"on this machine: {plan['streams']} answers at once, a chunk every "
        f"{plan['pace'] * 1e3:g} ms, each written by itself, so that none is found together with "
        "another. A chunk's cost is the slope between answers of "
        f"{plan['short']} and {plan['long']} chunks, a request's what the short ones cost beside "
        "their chunks.\n"
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
