"""`python -m bench.overflow`: the command line. It parses, prints and writes files."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.dataplane import circumstances
from bench.dataplane.measure import Generator, GeneratorError, Progress, span
from bench.dataplane.plot import installed
from bench.dataplane.summary import plain_json
from bench.overflow import plan as plans
from bench.overflow import plot, report, summary, targets
from bench.overflow.measure import Run
from bench.overflow.plan import Plan, Strategy
from bench.overflow.stack import Stack
from tools.cluster.process import ClusterError
from tools.cluster.recipes import ROOT

SCRATCH = ROOT / ".build/bench"
PUBLISHED = ROOT / "docs/benchmarks"
NAME = "overflow"

DESCRIPTION = """\
The overflow promise on real processes: requests are served in time, only the excess is paid for,
and what is private never leaves.

  run     measures the local capacity, replays bursts of 0.8 to 1.5 times of it under every
          strategy, then kills an engine under load
  report  the page and the plot once more, from a run's JSON file

Everything runs on this machine, as real processes: auth, four sim engines at real speed, the
provider simulator behind the cloud proxy, the router, and a load generator. Engines and provider
are simulations, and prices are invented. The strategies:

  router        LOCAL_FIRST: the router decides by prediction
  static-cap    the load generator sends to the cloud what is beyond one request for each slot
  loose-cap     the same beyond 1.5 requests for each slot: some wait
  always-local  LOCAL_ONLY
  always-cloud  CLOUD_ONLY

They take turns within each round, on the same trace. 15 % of the requests are LOCAL_ONLY under
every strategy; the provider simulator counts those that reach it. The processes use half a core of
two; what else the machine does shows in the marks.
"""

EXAMPLES = """\
examples:
  python -m bench.overflow run --quick                      a first impression, about a minute
  python -m bench.overflow run --strategies router static-cap
  python -m bench.overflow run --quick --rounds 3 --kills 0
  python -m bench.overflow report --from .build/bench/overflow/overflow.json

files: overflow.md, .json and .svg in docs/benchmarks for a whole run, in .build/bench/overflow for
anything smaller. The processes' logs are in .build/bench/overflow-PID; they stay after a failure.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overflow",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="run", choices=("run", "report"), help="default: run"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="1 round of short phases")
    size.add_argument("--smoke", action="store_true", help="seconds: only shows that it works")
    parser.add_argument("--rounds", type=int, help="looks at each strategy (default 3)")
    parser.add_argument("--kills", type=int, help="looks with an engine killed (default 3)")
    parser.add_argument("--strategies", type=Strategy, nargs="+", choices=list(Strategy))
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--from", dest="source", type=Path, help="report: the JSON file")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    plan = plans.SMOKE if options.smoke else plans.QUICK if options.quick else plans.FULL
    return replace(
        plan,
        rounds=plan.rounds if options.rounds is None else options.rounds,
        kills=plan.kills if options.kills is None else options.kills,
        strategies=tuple(options.strategies or plan.strategies),
    )


def _tell(line: str) -> None:
    print(line, flush=True)


async def _run(plan: Plan) -> dict[str, Any]:
    record: dict[str, Any] = {
        "format": 1,
        "circumstances": circumstances.record(),
        "plan": plan.to_json(),
    }
    ends = datetime.now().astimezone() + timedelta(seconds=plan.seconds)
    _tell(
        f"{plan.looks} looks ({len(plan.strategies)} strategies, {plan.rounds} rounds, "
        f"{plan.kills} kills), about {span(plan.seconds)}, until {ends:%H:%M}."
    )
    _tell(f"Starting auth, {plan.engines.count} engines, provider, cloud proxy and router …")
    async with (
        Generator.running("bench.overflow.generator") as generator,
        Stack(_folder(), plan.engines) as stack,
    ):
        run = Run(stack, generator, plan, Progress(plan.looks, plan.seconds, _tell))
        record["capacity"] = (await run.capacity()).to_json()
        await run.warm_up()
        record["samples"] = await run.rounds()
        record["kills"] = await run.kills()
        record["provider"] = await stack.provider_state()
    return finished(record)


def finished(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what follows from its looks."""
    record = record | {"rows": summary.rows(record["samples"])}
    return record | {"targets": [verdict.to_json() for verdict in targets.verdicts(record)]}


def _folder() -> Path:
    """An empty folder for the processes; another run has another."""
    folder = SCRATCH / f"{NAME}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write(record: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = plain_json(record)
    (out / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture = ""
    if record["samples"] and installed():
        picture = f"{NAME}.svg"
        plot.draw(record, out / picture)
    (out / f"{NAME}.md").write_text(report.page(record, picture), encoding="utf-8")
    _tell(f"\nWritten: {out / NAME}.md, .json{' and .svg' if picture else ''}")


async def _main(options: argparse.Namespace) -> None:
    if options.command == "report":
        source = options.source or PUBLISHED / f"{NAME}.json"
        record = json.loads(source.read_text(encoding="utf-8"))
        _write(record, options.out or source.parent)
        _tell(targets.headline(record))
        return
    task = asyncio.current_task()
    assert task is not None
    # Ctrl-C is handled by asyncio.run; a SIGTERM must clean up in the same way.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    started = time.monotonic()
    plan = _plan(options)
    record = await _run(plan)
    # Only a whole run is published.
    whole = PUBLISHED if plan == plans.FULL else SCRATCH / NAME
    _write(record, options.out or whole)
    _tell(f"Took {(time.monotonic() - started) / 60:.1f} min.\n")
    _tell(report.promise(record))


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 1 with the reason when it fails, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        asyncio.run(_main(options))
        # After a failure the logs stay: the message names them.
        shutil.rmtree(SCRATCH / f"{NAME}-{os.getpid()}", ignore_errors=True)
    except (ClusterError, GeneratorError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted; everything that had started was stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
