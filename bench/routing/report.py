"""Writes a run as a Markdown page. Pure: from the record to text.

The page says how it was reckoned, states what was aimed at first, and says what to doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

from bench.dataplane.summary import figure
from bench.routing import targets
from bench.routing.contenders import label
from bench.routing.scenarios import BY_NAME, Scenario
from bench.routing.workloads import Trace

Row = Mapping[str, Any]
Column = tuple[str, str, int, float]
"""Title, key, digits, and by what the figure is multiplied."""

METHOD = """\
**How to read it.** A simulation of eight replicas with continuous batching and chunked prefill,
whose steps take as long as those of Llama-3.1-8B on one H100 (5,753 µs + 17.25 µs a prompt token
+ 6 µs a sequence + 0.052 µs a token held). Router and baselines hear only what a router would:
reports with first tokens and every 50 ms, half a round trip old. *services/router/core* is the
router's own decision core, fed as the router feeds it; *greedy on perfect state* is told what no
router can know. Times are simulated, so a busy machine changes none but the decision's own.
Medians over the seeds, the least and the greatest in brackets; `×` is taken within a seed, in
which every policy has the same requests, slow spells and cloud. The first seconds of a run are
not counted. Lengths follow published percentiles of Azure's traces of 2023 and of Mooncake's.

**Load** is in shares of what the replicas can carry with nothing cached, as `capacity` in
`bench/routing/scenarios.py` reckons it. Slow hardware counts for what it can do.

**What to doubt.** Steps last what the model says: no jitter besides the antagonists', no pauses, no
packet is lost. Baselines are written anew from their papers or sources, with their published
constants, and use the time to first token where those speak of latency. The static caps are given
as a whole row of them: the one that is compared with is the cheapest that attains the objective,
which an operator finds only by trying.
"""

_TIMES: tuple[Column, ...] = (
    ("TTFT p50 ms", "ttft_p50_ms", 0, 1.0),
    ("p95 ms", "ttft_p95_ms", 0, 1.0),
    ("p99 ms", "ttft_p99_ms", 0, 1.0),
)
_TO_LOR: Column = ("p99 × LOR", "ttft_p99_to_lor", 2, 1.0)
_TPOT: Column = ("TPOT p99 ms", "tpot_p99_ms", 1, 1.0)
_ATTAINED: Column = ("objective attained %", "slo", 2, 100.0)
_CLOUD: tuple[Column, ...] = (
    ("sent to the cloud %", "cloud_requests", 1, 100.0),
    ("cloud cost %", "cloud_cost", 1, 100.0),
)
_HITS: Column = ("prompt tokens cached %", "hit", 1, 100.0)
_FAILURES: tuple[Column, ...] = (
    ("p99 ms, 20 s after", "recovery_p99_ms", 0, 1.0),
    ("lost", "lost", 0, 1.0),
    ("refused", "refused", 0, 1.0),
    ("sent again", "retried", 0, 1.0),
    ("resumed", "resumed", 0, 1.0),
)


def page(record: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole page; `pictures` are file names beside it."""
    return "\n".join(_lines(record, pictures)) + "\n"


def _lines(record: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    circumstances = record["circumstances"]
    where, changed = circumstances["machine"], circumstances["changed_files"]
    yield "# Routing: how long requests wait for their first token\n"
    yield "Made by `make bench-routing`; the figures are in the JSON file beside this page.\n"
    dirty = f" and {changed} files changed since" if changed else ""
    yield (
        f"{circumstances['at']}, commit `{circumstances['commit'][:12]}`{dirty}. "
        f"{where['cores']} × {where['cpu']}, load average before "
        f"{where['load_average_before'][0]:.1f}.\n"
    )
    yield METHOD
    if sentence := targets.headline(record):
        yield f"**In short.** {sentence}\n"
    yield from targets_table(record)
    for picture in pictures:
        yield f"![{_ALTS[picture.rpartition('-')[2]]}]({picture})\n"
    for name in dict.fromkeys(row["scenario"] for row in record["rows"]):
        mine = [row for row in record["rows"] if row["scenario"] == name]
        yield from _section(BY_NAME[name], mine)
    if record.get("decision_time"):
        yield from decision_table(record["decision_time"])


_ALTS = {
    "ttft.svg": "How many requests wait longer than so long for their first token",
    "overflow.svg": "Answers within the objective over cloud cost",
}


def targets_table(record: Mapping[str, Any]) -> Iterator[str]:
    """What was aimed at, and what came of it; only where something was measured."""
    found = targets.verdicts(record)
    if all(verdict.found["median"] is None for verdict in found):
        return
    yield "## Targets\n"
    yield "| what | scenario | found | target | met |"
    yield "|---|---|---|---|---|"
    for verdict in found:
        limit = "–"
        if verdict.limit is not None:
            sign = "≤" if verdict.at_most else "≥"
            limit = f"{sign} {verdict.limit:,g} {verdict.unit}".strip()
        met = {True: "yes", False: "**no**", None: "–" if verdict.limit is None else "not measured"}
        value = f"{_figure(verdict.found, verdict.digits)} {verdict.unit}".strip()
        yield f"| {verdict.what} | {verdict.where} | {value} | {limit} | {met[verdict.met]} |"
    yield ""


def _section(scenario: Scenario, rows: Sequence[Row]) -> Iterator[str]:
    columns = _columns(scenario)
    yield f"## {scenario.title}\n"
    yield f"{_told(scenario, rows[0])}\n"
    for routers in sorted({row["routers"] for row in rows}):
        if routers > 1:
            yield f"With {routers} routers:\n"
        yield "| policy | " + " | ".join(title for title, *_ in columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for row in rows:
            if row["routers"] == routers:
                figures = (_figure(row.get(key), digits, by) for _, key, digits, by in columns)
                yield f"| {label(row['policy'])} | {' | '.join(figures)} |"
        yield ""


def _told(scenario: Scenario, row: Row) -> str:
    counted = f"{_figure(row['requests'], 0)} requests counted in each of {row['seeds']} runs."
    if not _has_objective(scenario):
        return f"{scenario.about} {counted}"
    ttft, tpot = scenario.objective.ttft, scenario.objective.tpot
    return (
        f"{scenario.about} {counted} Objective: {ttft:g} s to the first token, {1e3 * tpot:g} ms "
        "for each further one."
    )


def _has_objective(scenario: Scenario) -> bool:
    return scenario.objective.tpot < inf


def _columns(scenario: Scenario) -> tuple[Column, ...]:
    attained: tuple[Column, ...] = (_ATTAINED,) if _has_objective(scenario) else ()
    if scenario.cloud is not None:
        return (*attained, *_CLOUD, *_TIMES, _TPOT)
    hits: tuple[Column, ...] = (_HITS,) if scenario.trace is Trace.MOONCAKE else ()
    failures = _FAILURES if scenario.kills else ()
    return (*_TIMES, _TO_LOR, *failures, *hits, _TPOT, *attained)


def decision_table(rows: Sequence[Row]) -> Iterator[str]:
    """How long one decision takes."""
    yield "## One decision\n"
    yield (
        "CPU time of the real `choose`, without and with the snapshot of the pool that is built "
        "for it. A long prompt has the names of 512 blocks, which a quarter of the backends hold "
        "to some depth. Medians over rounds, the least and the greatest in brackets.\n"
    )
    yield "| backends | prompt | median µs | p99 µs | … with snapshot, median µs | p99 µs |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        prompt = f"long, {row['prefix_blocks']} blocks" if row["prefix_blocks"] else "no blocks"
        figures = (
            _figure(figure(row[name]), 0)
            for name in (
                "choose_p50_us",
                "choose_p99_us",
                "with_snapshot_p50_us",
                "with_snapshot_p99_us",
            )
        )
        yield f"| {row['backends']} | {prompt} | {' | '.join(figures)} |"
    yield ""


def _figure(value: Mapping[str, float | None] | None, digits: int, factor: float = 1.0) -> str:
    if value is None or value["median"] is None:
        return "–"
    middle, least, most = (
        f"{factor * (value[key] or 0.0):,.{digits}f}" for key in ("median", "min", "max")
    )
    return middle if least == most else f"{middle} ({least}–{most})"
