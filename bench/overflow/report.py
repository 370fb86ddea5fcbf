"""Writes a run as a Markdown page. Pure: from the record to text.

The page says what is simulated and how it was measured, states the promises first, and marks what
to doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.dataplane.report import figure_of, verdict_table
from bench.overflow import sample, targets
from bench.overflow.plan import OBJECTIVE, PROVIDER_FIRST_S, PROVIDER_TOKEN_S, Strategy

Record = Mapping[str, Any]

_FIRST_MS, _TOKEN_MS = PROVIDER_FIRST_S * 1e3, PROVIDER_TOKEN_S * 1e3
_TTFT_MS, _TPOT_MS = OBJECTIVE.ttft * 1e3, OBJECTIVE.tpot * 1e3

SIMULATED = f"""\
**What is simulated.** The engines are the sim engine: real processes that serve the real contract
in real time, by a model of continuous batching, without a language model. The cloud is the provider
simulator behind the real cloud proxy: {_FIRST_MS:.0f} ms to the first token, then one every
{_TOKEN_MS:.0f} ms. Its prices are invented, and costs are in invented µUSD, from the receipts.
Router, cloud proxy and auth are as in production.
"""

METHOD = f"""\
**The load.** An open loop over a session for each of several callers. Arrivals are a renewal
process with gamma-distributed gaps (coefficient of variation 3), in phases that step between loads
below and above the local capacity, which is measured first, with every slot taken. Lengths are
those of Azure's 2023 conversation trace, prompts an eighth and answers a quarter as long. Every
strategy replays the same trace; each round has another one, and seeds are fixed. A share of the
requests is *private*: LOCAL_ONLY under every strategy. The others are *allowed* to leave.

**The strategies.** *The router* gets allowed requests as LOCAL_FIRST. *A static cap* counts what is
in flight: the load generator sends an allowed request as LOCAL_ONLY while fewer than the cap are in
flight locally, private ones included, and as CLOUD_ONLY beyond. 1 × slots is what `max_num_seqs` of
the engines holds at once: nothing waits. At 1.5 × slots some wait in the router's line. *Always
local* and *always cloud* are LOCAL_ONLY and CLOUD_ONLY. All of them pass the same router, which
chooses among the engines, so that only the rule of overflow differs.

**How to read it.** Medians over the rounds, the least and the greatest in brackets; ratios are
taken within a round. An answer is *in time* when it came whole, its first token within
{_TTFT_MS:.0f} ms of the moment at which the trace has the request, and its further tokens within
{_TPOT_MS:.0f} ms each on average. Times are the caller's. What was refused or failed counts as
not in time; delays are of what was served.

**What to doubt.** *… saturated*: that process used more than {sample.SATURATED} of a core over two
seconds. *… starved*: in some second it waited more than {sample.STARVED_S} s for a core. *Generator
late*: it sent more than one request in a hundred over {sample.LATE_S * 1e3:.0f} ms late. Such a
look is invalid: its delays, shares and costs are left out, its counts are not. *Other programs*
took more than {sample.NOISY} of a core; *all cores busy*: over two seconds.
"""


def page(record: Record, plot: str) -> str:
    """The whole page; `plot` is the picture's file name, empty for none."""
    return "\n".join(_lines(record, plot)) + "\n"


def _lines(record: Record, plot: str) -> Iterator[str]:
    where, versions = record["circumstances"]["machine"], record["circumstances"]["versions"]
    yield "# Overflow: served in time, and only the excess paid for\n"
    yield "Made by `make bench-overflow`; the figures are in the JSON file beside this page.\n"
    changed = record["circumstances"]["changed_files"]
    yield (
        f"{record['circumstances']['at']}, commit `{record['circumstances']['commit'][:12]}`"
        f"{f' and {changed} files changed since' if changed else ''}. {where['cores']} × "
        f"{where['cpu']}, {where['memory_gib']} GiB, Linux {where['kernel']}, load average before "
        f"{where['load_average_before'][0]:.1f}. Python {versions['python']}, grpcio "
        f"{versions['grpcio']}, uvloop {versions['uvloop']}.\n"
    )
    yield from _validity(record)
    yield SIMULATED
    yield from _scene(record)
    yield METHOD
    yield from _promise(record)
    if plot:
        yield f"![attainment over cloud cost, and requests over time]({plot})\n"
    yield from _strategies(record["rows"])
    yield from _private(record["rows"])
    yield from _why(record["rows"])
    if record["kills"]:
        yield from _kills(record["kills"])
    yield from _cores(record["samples"])


def promise(record: Record) -> str:
    """What was promised and what came of it, for the terminal."""
    return "\n".join(_promise(record))


def _promise(record: Record) -> Iterator[str]:
    yield "## The promise\n"
    if sentence := targets.headline(record):
        yield sentence + "\n"
    yield from verdict_table(targets.verdicts(record))


def _validity(record: Record) -> Iterator[str]:
    looks = [*record["samples"], *record["kills"]]
    bad = [look for look in looks if sample.is_invalid(look["marks"])]
    if bad:
        yield (
            f"**{len(bad)} of {len(looks)} looks are invalid**, as marked in the tables; take the "
            "run again on a machine that does nothing else.\n"
        )


def _scene(record: Record) -> Iterator[str]:
    engines, capacity = record["plan"]["engines"], record["capacity"]
    phases = record["plan"]["phases"]
    loads = ", ".join(f"{phase['load']:g} ×" for phase in phases)
    yield (
        f"**The scene.** {engines['count']} engines of {engines['slots']} slots; a step takes "
        f"{engines['base'] / 1e3:g} ms, {engines['prefill'] / 1e3:g} ms for each token prefilled, "
        f"{engines['decode'] / 1e3:g} ms for each sequence. Measured capacity: "
        f"{capacity['tokens_per_second']:,.0f} tokens/s (by the engines' model "
        f"{capacity['modelled_tokens_per_second']:,.0f}), which is "
        f"{capacity['requests_per_second']:.1f} requests/s of {capacity['mean_prompt']:.0f} tokens "
        f"in and {capacity['mean_output']:.0f} out. Phases of {phases[0]['seconds']:g} s at "
        f"{loads} of it; {100 * record['plan']['private']:.0f} % private.\n"
    )


_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("in time, %", "slo_attainment", 100, 2),
    ("served, %", "served_share", 100, 2),
    ("in the cloud, %", "cloud_share", 100, 1),
    ("TTFT p50 ms", "ttft_p50", 1e3, 0),
    ("TTFT p99 ms", "ttft_p99", 1e3, 0),
    ("… local", "local_ttft_p99", 1e3, 0),
    ("… cloud", "cloud_ttft_p99", 1e3, 0),
    ("TPOT p99 ms", "tpot_p99", 1e3, 1),
)


def _strategies(rows: Sequence[Record]) -> Iterator[str]:
    yield "## Requests that may leave\n"
    heads = [title for title, *_ in _COLUMNS]
    heads += ["µUSD a 1,000", "× static cap", "× always cloud", "local use in overload, %"]
    yield f"| strategy | {' | '.join(heads)} | doubt |"
    yield "|---" * (len(heads) + 2) + "|"
    for row in rows:
        figures = [_times(row["allowed"][key], by, digits) for _, key, by, digits in _COLUMNS]
        figures += [figure_of(row["cost_per_1000"], 0), figure_of(row["cost_to_cap"], 3)]
        figures += [figure_of(row["cost_to_cloud"], 3), _times(row["overload_use"], 100, 1)]
        label = Strategy(row["strategy"]).label
        yield f"| {label} | {' | '.join(figures)} | {'; '.join(row['marks'])} |"
    yield ""


def _private(rows: Sequence[Record]) -> Iterator[str]:
    yield "## Requests that must not leave\n"
    yield (
        "| strategy | requests | in time | late | refused honestly | broken | reached the provider "
        "| TTFT p50 ms | TTFT p99 ms |"
    )
    yield "|---" * 9 + "|"
    for row in rows:
        mine = row["private"]
        counts = [mine[name] for name in ("requests", "attained", "late", "refused", "broken")]
        counts.append(row["provider_private"])
        delays = [_times(mine[name], 1e3, 0) for name in ("ttft_p50", "ttft_p99")]
        cells = [*(f"{count:,}" for count in counts), *delays]
        yield f"| {Strategy(row['strategy']).label} | {' | '.join(cells)} |"
    yield ""


def _why(rows: Sequence[Record]) -> Iterator[str]:
    yield "## Why, by the receipts and refusals\n"
    yield "| strategy | left because | ended without an answer |"
    yield "|---|---|---|"
    for row in rows:
        yield (
            f"| {Strategy(row['strategy']).label} | {_named(row['reasons'])} "
            f"| {_named(row['failures'])} |"
        )
    yield ""


def _kills(kills: Sequence[Record]) -> Iterator[str]:
    yield "## An engine killed under load\n"
    yield (
        "SIGKILL in the middle of a look at the router's own rule. Every token is compared with "
        "those of an undisturbed answer.\n"
    )
    yield (
        "| killed | requests | answers that lost it | … in mid-stream | … exact | … ended in the "
        "cloud | longest pause ms | not ended whole | private refused | doubt |"
    )
    yield "|---" * 10 + "|"
    for look in kills:
        allowed, private = look["allowed"], look["private"]
        cells = [
            look["engine"],
            f"{allowed['requests'] + private['requests']:,}",
            *(str(look[name]) for name in ("hit", "mid_stream", "exact", "went_to_cloud")),
            f"{look['longest_pause'] * 1e3:,.0f}",
            str(targets.not_whole(look)),
            str(private["refused"]),
            "; ".join(look["marks"]),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cores(samples: Sequence[Record]) -> Iterator[str]:
    """Cores by process, over all looks."""
    looks = [look["cores"] for look in samples if look["cores"]]
    if not looks:
        return
    yield "## Cores\n"
    yield (
        "Used: the mean over all looks, and the most over two seconds of any. Waited for: the most "
        "in any second.\n"
    )
    yield "| process | mean | most | waited, s |"
    yield "|---|---|---|---|"
    for name in looks[0]:
        means = [look[name]["mean"] for look in looks]
        most = max(look[name]["most"] for look in looks)
        label = {"machine": "all together", "others": "other programs"}.get(name, name)
        waits = [look["waits"][name] for look in samples if name in look.get("waits", {})]
        wait = f"{max(waits):.2f}" if waits else "–"
        yield f"| {label} | {sum(means) / len(means):.2f} | {most:.2f} | {wait} |"
    yield ""


def _times(value: Mapping[str, float | None], by: float, digits: int) -> str:
    """A figure in another unit."""
    return figure_of({k: None if v is None else v * by for k, v in value.items()}, digits)


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count}× {name}" for name, count in counts.items()) or "–"
