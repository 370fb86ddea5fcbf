"""Writes a run as a Markdown page. Pure: from the record to text.

The page says how it was measured, states ratios first, and marks what to doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.dataplane import fairness, targets
from bench.dataplane.plan import Path

Row = Mapping[str, Any]

METHOD = """\
**How to read it.** Medians over the rounds, the least and the greatest in brackets. CPU is that of
the proxy's whole process tree, from the scheduler's books; `× Envoy` is taken within a round.
"Added" is the difference to the direct path of the same form in the same round. Caller, proxy and
engine share the machine's cores, and each proxy has one worker. In a paced run the engine makes a
step every 20 ms, in which each running answer gets one token, as real engines do; a new answer
waits for the next step, so added TTFT is told by the unpaced rows. The router authenticates,
admits, accounts, measures and writes receipts; Envoy and nginx only relay. Plain RPCs run over
one connection for each 100 streams, sessions hold up to 256 streams each.

**Two kinds of ends.** What a relay of single RPCs costs depends on how many tokens it finds at
once when it wakes up. Between a caller and an engine that use grpc.aio, as most callers of this
contract do, tokens come one by one, and Envoy wakes up for each of a few. Between *lean ends*, a
caller and an engine of bare HTTP/2 that write a whole step at once, Envoy shows the least that it
can cost. Both are given; what is seen in production lies between them.

**Gateways over HTTP.** LiteLLM and SMG speak OpenAI's API, so they have a caller and an engine of
their own: bare HTTP/1.1 with ready-made events (`openai_load.py`, `openai_server.py`), held against
a direct path of that kind. SMG's gRPC workers speak vLLM's contract as SMG has it, with token ids;
SMG then tokenizes and detokenizes, which no other path here does, and its worker is grpc.aio.
LiteLLM runs without keys, database and callbacks. `×` between them and the router's session relay
is between different wires, on one machine, in one round.

**What to doubt.** *generator saturated*, *engine saturated*: that process used more than 0.9 of a
core, so tokens/s says more about it than about the proxy. *machine busy*: other programs took more
than 0.2 of a core. *behind the pace*: fewer tokens arrived than a paced engine makes, so the proxy,
or what is marked, does not keep up. Unpaced rows show throughput; what a token costs is better
read from the paced ones, for bursts flatter everyone.
"""


def page(record: Mapping[str, Any], plot: str) -> str:
    """The whole page; `plot` is the picture's file name, empty for none."""
    return "\n".join(_lines(record, plot)) + "\n"


def _lines(record: Mapping[str, Any], plot: str) -> Iterator[str]:
    where, versions = record["circumstances"]["machine"], record["circumstances"]["versions"]
    yield "# Data plane: what a token costs on its way through a proxy\n"
    yield "Made by `make bench-dataplane`; the figures are in the JSON file beside this page.\n"
    yield (
        f"{record['circumstances']['at']}, commit `{record['circumstances']['commit'][:12]}`"
        f"{_dirty(record)}. {where['cores']} × {where['cpu']}, {where['memory_gib']} GiB, Linux "
        f"{where['kernel']}, load average before {where['load_average_before'][0]:.1f}."
    )
    yield (
        f"Python {versions['python']}, grpcio {versions['grpcio']}, protobuf "
        f"{versions['protobuf']}, uvloop {versions['uvloop']}; Envoy "
        f"{versions['envoy'] or '–'}, nginx {versions['nginx'] or '–'}, LiteLLM "
        f"{versions.get('litellm') or '–'}, SMG {versions.get('smg') or '–'}."
    )
    yield f"Engine: {_ENGINES[record['engine']]}\n"
    yield METHOD
    if record["rows"]:
        yield from _headline(record)
        yield from targets_table(record)
        if plot:
            yield f"![CPU a token over concurrent streams]({plot})\n"
        yield from _matrix(record["rows"])
    if record.get("cold"):
        yield from _cold(record["cold"])
    if record.get("many"):
        yield from _many(record["many"])
    if record.get("fairness"):
        yield from fairness.section(record["fairness"])
    if record.get("left_out"):
        yield "## Not measured\n"
        for path, why in record["left_out"].items():
            yield f"- {Path(path).label}: {why}."


_ENGINES = {
    "fake": "a fake (`bench/dataplane/fake_engine.py`): the real contract through the services' "
    "own chassis, with ready-made chunks instead of a model. Its plain RPCs bypass the chassis, "
    "in favour of the proxies that relay them.",
    "sim": "the sim engine (`services/local_engine`), a simulation of continuous batching.",
}


def _dirty(record: Mapping[str, Any]) -> str:
    changed = record["circumstances"]["changed_files"]
    return f" and {changed} files changed since" if changed else ""


def _headline(record: Mapping[str, Any]) -> Iterator[str]:
    """CPU a token of the session relay over Envoy's: the claim."""
    found = [
        row
        for row in record["rows"]
        if row["path"] == Path.ROUTER_SESSION and row.get("cpu_us_per_token_to_envoy")
    ]
    if not found:
        return
    yield "## The claim: the router's session relay over Envoy's relay of plain RPCs\n"
    if sentence := targets.headline(record):
        yield sentence + "\n"
    yield "| load | CPU a token | … lean ends | CPU a request | tokens/s | … lean ends |"
    yield "|---|---|---|---|---|---|"
    for row in found:
        ratios = (
            figure_of(row.get(name), 2)
            for name in (
                "cpu_us_per_token_to_envoy",
                "cpu_us_per_token_to_envoy_lean",
                "cpu_us_per_request_to_envoy",
                "tokens_per_second_to_envoy",
                "tokens_per_second_to_envoy_lean",
            )
        )
        yield f"| {_load(row)} | {' | '.join(ratios)} |"
    yield ""


def targets_table(record: Mapping[str, Any]) -> Iterator[str]:
    """What was aimed at, and what came of it; only where something was measured."""
    found = targets.verdicts(record)
    if all(verdict.found["median"] is None for verdict in found):
        return
    yield "## Targets: the router's session relay\n"
    yield from verdict_table(found)


def verdict_table(verdicts: Iterable[targets.Verdict]) -> Iterator[str]:
    """Found beside asked, a line each."""
    yield "| what | load | found | target | met |"
    yield "|---|---|---|---|---|"
    for verdict in verdicts:
        value = figure_of(verdict.found, _digits(verdict))
        limit = "–"
        if verdict.limit is not None:
            sign = "≤" if verdict.at_most else "≥"
            limit = f"{sign} {verdict.limit:,g} {verdict.unit}".strip()
        met = {True: "yes", False: "**no**", None: "–" if verdict.limit is None else "not measured"}
        yield (
            f"| {verdict.what} | {verdict.where} | {value} {verdict.unit} | {limit} "
            f"| {met[verdict.met]} |"
        )
    yield ""


def _digits(verdict: targets.Verdict) -> int:
    """How many decimals say something."""
    median = verdict.found["median"] or 0.0
    if verdict.unit == "%":
        return 2
    whole = not verdict.unit and median == int(median)
    return 0 if median >= 100 or whole else 3 if verdict.unit == "×" else 2


_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("tokens/s", "tokens_per_second", 0),
    ("requests/s", "requests_per_second", 0),
    ("CPU µs/token", "cpu_us_per_token", 2),
    ("× Envoy", "cpu_us_per_token_to_envoy", 2),
    ("CPU µs/request", "cpu_us_per_request", 0),
    ("TTFT p50 ms", "ttft_p50_ms", 2),
    ("added TTFT p50 ms", "added_ttft_p50_ms", 2),
    ("added TTFT p99 ms", "added_ttft_p99_ms", 2),
    ("jitter p99 ms", "jitter_p99_ms", 2),
    ("added delay p99 ms", "added_gap_p99_ms", 2),
    ("tokens/message", "tokens_per_message", 1),
    ("peak RSS MiB", "rss_peak_mib", 0),
    ("generator, cores", "cores_generator", 2),
    ("engine, cores", "cores_engine", 2),
)


def _matrix(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(row["cell"] for row in rows))
    for name in names:
        mine = [row for row in rows if row["cell"] == name]
        yield f"## {_load(mine[0])[0].upper()}{_load(mine[0])[1:]}\n"
        yield "| path | " + " | ".join(title for title, _, _ in _COLUMNS) + " | doubt |"
        yield "|---" * (len(_COLUMNS) + 2) + "|"
        for row in mine:
            figures = (figure_of(row.get(key), digits) for _, key, digits in _COLUMNS)
            label = Path(row["path"]).label
            yield f"| {label} | {' | '.join(figures)} | {'; '.join(row['marks'])} |"
        yield ""


def _load(row: Row) -> str:
    pace = f"paced at {row['pace_ms']} ms a token" if row["pace_ms"] else "unpaced"
    over = f" over {row['sessions']} sessions" if row["sessions"] > 1 else ""
    return f"{pace}, {row['streams']:,} streams of {row['tokens']} tokens{over}"


def _cold(cold: Mapping[str, Any]) -> Iterator[str]:
    paces = ", ".join(str(pace) for pace in cold["paces_ms"])
    yield "## One cold message\n"
    yield (
        f"One answer, a token every {paces} ms: the slope of CPU time over messages, which leaves "
        "out what the proxy spends on its own (second column).\n"
    )
    yield "| path | CPU µs/message | of its own, µs of CPU a second |"
    yield "|---|---|---|"
    for name, cost in cold["us_per_message"].items():
        own = cold["own_us_per_second"][name]
        yield f"| {Path(name).label} | {figure_of(cost, 0)} | {figure_of(own, 0)} |"
    yield ""


def _many(many: Mapping[str, Any]) -> Iterator[str]:
    yield "## Up to ten thousand streams on one worker\n"
    yield f"Sessions of 100 streams, {many['pace_ms']} ms a token, answers of 256 tokens.\n"
    yield "| streams | sessions | errors | tokens/s | CPU µs/token | RSS KiB a stream | peak MiB |"
    yield "|---|---|---|---|---|---|---|"
    for row in many["rows"]:
        yield (
            f"| {row['streams']:,} | {row['sessions']} | {row['errors']} "
            f"| {figure_of(row['tokens_per_second'], 0)} | {figure_of(row['cpu_us_per_token'], 2)} "
            f"| {row['rss_kib_per_stream']:.1f} | {figure_of(row['rss_peak_mib'], 0)} |"
        )
    yield ""


def figure_of(value: Mapping[str, float | None] | None, digits: int) -> str:
    """A median and its spread; a dash for none."""
    if value is None or value["median"] is None:
        return "–"
    middle, least, most = (f"{value[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least}–{most})"
