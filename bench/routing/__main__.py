"""`python -m bench.routing`: the command line. It parses, prints and writes files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import circumstances
from bench.dataplane.measure import span
from bench.dataplane.summary import plain_json
from bench.routing import decision_time, plot, report, run, targets
from bench.routing.contenders import label
from bench.routing.scenarios import BY_NAME, SCENARIOS, Scenario

SCRATCH = circumstances.ROOT / ".build/bench/routing"
PUBLISHED = circumstances.ROOT / "docs/benchmarks"
NAME = "routing"

SEEDS = 3
QUICK_DECISIONS = 2_000

DESCRIPTION = """\
Where requests go, and how long they wait for their first token: a simulation of eight model
replicas that drives the router's own decision core (services/router/core) beside the policies
that others use, all on the same requests.

  run            every scenario under each of its policies, for each seed; the page and the plots
  report         the page and the plots once more, from a run's JSON file
  decision-time  how long one decision of the core takes, with 16 and with 128 backends

The simulation has a clock of its own: a busy machine makes it last longer and changes none of its
figures, and the same seed gives the same ones again. Only decision-time measures this machine.

scenarios:
"""

EXAMPLES = """\
examples:
  python -m bench.routing run --quick                       a first impression, a minute
  python -m bench.routing run --scenario half-slow kill     only these, in full length
  python -m bench.routing run --scenario alike --policy core lor c3 --routers 4
  python -m bench.routing decision-time --json

A whole run is published in docs/benchmarks; anything smaller goes to .build/bench/routing, unless
--out says otherwise.
"""


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {scenario.name:15}{scenario.title}" for scenario in SCENARIOS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.routing",
        description=DESCRIPTION + names,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=("run", "report", "decision-time"),
        help="what to do (default: run)",
    )
    parser.add_argument("--quick", action="store_true", help="1 seed and shorter runs")
    parser.add_argument(
        "--scenario",
        nargs="+",
        action="extend",
        choices=list(BY_NAME),
        metavar="NAME",
        help="only these (default: all)",
    )
    parser.add_argument("--seeds", type=_positive, help=f"runs of each (default {SEEDS})")
    parser.add_argument("--routers", type=_positive, help="only contenders of so many routers")
    parser.add_argument("--policy", nargs="+", metavar="NAME", help="only these contenders")
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=min(2, os.cpu_count() or 1),
        help="runs at once, each in a process (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--from", dest="source", type=Path, help="report: the JSON file")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


class _Progress:
    """One line for each run that is done, with an estimate of what is left; on stderr."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = time.monotonic()
        self._done = 0

    def __call__(self, sample: run.Sample) -> None:
        self._done += 1
        left = (time.monotonic() - self._started) * (self._total / self._done - 1)
        p99 = sample["ttft_p99_ms"]
        _tell(
            f"[{self._done:3}/{self._total}, {span(left)} left] {sample['scenario']}, "
            f"{sample['routers']} router{'s' if sample['routers'] > 1 else ''}, "
            f"{label(sample['policy']).strip('*')}, seed {sample['seed']}: "
            + (f"p99 {p99:,.0f} ms" if p99 is not None else "nothing was answered")
        )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    scenarios = _scenarios(options)
    seeds = options.seeds or (1 if options.quick else SEEDS)
    wanted = run.runs(scenarios, seeds, short=options.quick)
    record: dict[str, Any] = {"format": 1, "circumstances": circumstances.record(), "seeds": seeds}
    # First, while nothing else of this run competes for the caches.
    enough = QUICK_DECISIONS if _is_small(options) else decision_time.DECISIONS
    decisions = decision_time.measure(enough)
    _tell(f"{len(wanted)} runs, {options.jobs} at once.")
    samples = run.samples(wanted, options.jobs, _Progress(len(wanted)))
    record |= {"rows": run.rows(scenarios, samples), "samples": samples}
    record |= {"decision_time": decisions}
    return record | {"targets": [v.to_json() for v in targets.verdicts(record)]}


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Those that are wanted, with those contenders that are."""
    found = []
    for scenario in SCENARIOS:
        entries = tuple(
            entry
            for entry in scenario.entries
            if (not options.policy or entry.policy in options.policy)
            and (not options.routers or entry.routers == options.routers)
        )
        if entries and (not options.scenario or scenario.name in options.scenario):
            found.append(replace(scenario, entries=entries))
    return found


def _is_small(options: argparse.Namespace) -> bool:
    """Whether the run is not one to publish."""
    return bool(
        options.quick or options.scenario or options.seeds or options.policy or options.routers
    )


def _write(record: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = plain_json(record)
    # A line for each row: what changed between two runs can be seen.
    (out / f"{NAME}.json").write_text(_lines_of(record) + "\n", encoding="utf-8")
    pictures = plot.draw(record["rows"], out, NAME) if plot.installed() else []
    (out / f"{NAME}.md").write_text(report.page(record, pictures), encoding="utf-8")
    _tell(f"\nWritten: {', '.join(str(out / f'{NAME}{end}') for end in ('.md', '.json'))}")
    if not pictures:
        _tell("No plots: matplotlib is not installed; make setup-bench installs it.")


def _lines_of(record: dict[str, Any]) -> str:
    parts = []
    for key, value in record.items():
        if isinstance(value, list):
            items = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
            parts.append(f" {json.dumps(key)}: [\n  {items}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    """The targets, for the terminal, or all figures for a program."""
    if as_json:
        shown = {key: value for key, value in record.items() if key != "samples"}
        print(json.dumps(plain_json(shown), ensure_ascii=False))
        return
    print("\n".join(report.targets_table(plain_json(record))))
    if sentence := targets.headline(record):
        print(sentence)


def _main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    if options.command == "decision-time":
        rows = decision_time.measure(QUICK_DECISIONS if options.quick else decision_time.DECISIONS)
        print(json.dumps(rows) if options.json else "\n".join(report.decision_table(rows)))
        return
    if options.command == "report":
        source = options.source or PUBLISHED / f"{NAME}.json"
        record = json.loads(source.read_text(encoding="utf-8"))
        # Targets and rows anew: they may be reckoned in another way since.
        record["rows"] = run.rows(SCENARIOS, record["samples"])
        record["targets"] = [v.to_json() for v in targets.verdicts(record)]
        _write(record, options.out or source.parent)
    else:
        record = _run(options)
        _write(record, options.out or (SCRATCH if _is_small(options) else PUBLISHED))
        _tell(f"Took {(time.monotonic() - started) / 60:.1f} min.\n")
    _show(record, as_json=options.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 1 with the reason when it fails, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        _main(options)
    except FileNotFoundError as error:
        print(f"bench: no such file: {error.filename}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
