"""From a record to its page, in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.dataplane.summary import Figure
from bench.dataplane.targets import Verdict
from bench.engine import summary, targets
from bench.engine.plan import Path

Record = Mapping[str, Any]


def spread(found: Figure, digits: int = 1) -> str:
    """ "median (least to greatest)", "–" without values."""
    middle, least, most = found["median"], found["min"], found["max"]
    if middle is None or least is None or most is None:
        return "–"
    if least == most:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def short(found: Figure, digits: int = 1) -> str:
    """The median alone."""
    middle = found["median"]
    return "–" if middle is None else f"{middle:,.{digits}f}"


def verdict_table(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """What was to be reached, what was found, and whether it was."""
    rows = [["target", "streams", "found", "asked", ""]]
    for one in verdicts:
        digits = 2 if one.unit == "×" else 0
        sign = "≤" if one.at_most else "≥"
        asked = "" if one.limit is None else f"{sign} {one.limit:.{digits}f} {one.unit}"
        rows.append([one.what, one.where, spread(one.found, digits), asked, _word(one)])
    return rows


def _word(one: Verdict) -> str:
    if one.found["median"] is None:
        return "not measured"
    return "" if one.met is None else "met" if one.met else "**missed**"


def table(rows: Sequence[Record]) -> list[list[str]]:
    """A row for each path and number of streams."""
    heads = ["streams", "path", "tokens/s", "× offline", "× vllm serve", "TTFT p50 / p99, ms"]
    heads += ["TPOT p50 / p99, ms", "goodput, requests/s", "CPU µs/token", "marks"]
    found = [heads]
    for row in rows:
        found.append(
            [
                str(row["streams"]),
                Path(row["path"]).label,
                spread(row["tokens_per_second"], 0),
                short(row["to_offline"], 2),
                short(row["to_serve"], 2),
                _two(row, "ttft", 0),
                _two(row, "tpot", 2),
                _goodput(row),
                short(row["cpu_us_per_token"], 0),
                ", ".join(row["marks"]),
            ]
        )
    return found


def _two(row: Record, name: str, digits: int) -> str:
    if row[f"{name}_p50_ms"]["median"] is None:
        return "–"
    return f"{short(row[f'{name}_p50_ms'], digits)} / {short(row[f'{name}_p99_ms'], digits)}"


def _goodput(row: Record) -> str:
    share = row["within"]["median"]
    return "–" if share is None else f"{short(row['goodput'], 2)} ({share:.0%})"


def cancel_table(record: Record) -> list[list[str]]:
    """From cancel to free, where a path tells."""
    rows = [["path", "ms from cancel to a free slot", "ms to free KV cache"]]
    for path in (Path.SERVE, Path.SESSION):
        slots = summary.cancels(record, path, "slot_ms")
        if slots["median"] is not None:
            kv = summary.cancels(record, path, "kv_ms")
            rows.append([path.label, spread(slots, 0), spread(kv, 0)])
    return rows


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
    plan = record["plan"]
    where = record["circumstances"]["machine"]
    yield "# Local engine: what it serves beside vLLM's own server\n"
    yield "Made by `make bench-engine`; the figures are in the JSON file beside this page.\n"
    if plan["model"]["simulated"]:
        yield "**Simulated engine: no model ran; it is shown only that the benchmark works.**\n"
    gpu = record["circumstances"].get("gpu")
    yield (
        f"{record['circumstances']['at']}, commit `{record['circumstances']['commit'][:12]}`. "
        + (f"{gpu['name']}, driver {gpu['driver']}. " if gpu else "")
        + f"{where['cores']} × {where['cpu']}, {where['memory_gib']} GiB, Linux {where['kernel']}, "
        f"load average before {where['load_average_before'][0]:.1f}.\n"
    )
    yield "Versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items() if v) + ".\n"
    for name, why in record["failures"].items():
        yield f"**{name} failed and is missing from then on:** {why.splitlines()[0]}\n"
    if record["cut"]:
        yield "**The time that was given ended before the plan did.**\n"
    yield markdown(verdict_table(targets.verdicts(record))) + "\n"
    if plot:
        yield f"![Tokens a second]({plot})\n"
    yield markdown(table(summary.rows(record))) + "\n"
    cancelled = cancel_table(record)
    if len(cancelled) > 1:
        yield markdown(cancelled) + "\n"
    yield from _method(record)


def _method(record: Record) -> Iterator[str]:
    plan = record["plan"]
    model, objective = plan["model"], plan["objective"]
    weights = ", weights made up" if model["load_format"] == "dummy" else ""
    yield (
        f"Model: `{model['path'].rstrip('/').rpartition('/')[2]}`, {model['dtype']}{weights}. "
        f"Each request has {plan['prompt_tokens']} prompt tokens, the same ones on every path and "
        f"others in every round, and {plan['output_tokens']} output tokens, greedy, the end of the "
        "text ignored. A look sends as many requests at once as it has streams and waits for all; "
        "a few streams ask several times. Medians over the rounds, the least and the greatest in "
        "brackets; ratios are taken within a round.\n"
    )
    if plan["alternate"]:
        yield (
            "All paths were up at once and took turns within each round, another one first each "
            "time; those that wait compute nothing.\n"
        )
    else:
        yield (
            "**One path after the other was up, each with all of its rounds**: there is no room "
            "for all at once. A ratio compares rounds of the same number, minutes apart. "
            "Engine and router are up together and took turns.\n"
        )
    yield (
        "Every path's vLLM has the same arguments "
        f"(`max_num_seqs` {max(*plan['streams'], 8)}, `max_num_batched_tokens` "
        f"{model['max_num_batched_tokens'] or 'left to vLLM'}). *Offline* is one call of "
        "`vllm.LLM.generate`, which streams nothing: the ceiling. *AsyncLLM* is a task for each "
        "request in the caller's own process. *vllm serve* streams completions to "
        f"{plan['clients']} caller processes over bare HTTP/1.1, a connection for each stream, "
        "without a line of log for each. *Engine* and *router* are called over one session for "
        f"each of {plan['session_clients']} caller processes, with all that production has on: "
        "authentication, accounting, metrics, load reports.\n"
    )
    yield (
        f"*Goodput* counts requests with their first token within {objective['ttft']:g} s and at "
        f"most {objective['tpot'] * 1e3:g} ms for each further one. *CPU* is that of the path's "
        "whole process tree, the engine core's included; in process, the caller's too. *Generator "
        "saturated* marks looks in which a caller's process used more than 0.9 of a core, *machine "
        "busy* those in which other programs used more than a quarter of one.\n"
    )
    yield (
        "*From cancel to a free slot*: every slot is taken and one more request waits; a running "
        "stream is cancelled, and the clock stops at the first token of the one that waited, its "
        "prompt's reading included. *To free KV cache*: all but one stream are cancelled, and the "
        "clock stops when a quarter of the use is left, as load reports (every 50 ms) or the "
        "metrics page of `vllm serve` tell.\n"
    )
