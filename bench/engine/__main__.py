"""`python -m bench.engine`: the command line. It parses, prints and writes files."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path as FilePath
from typing import Any

from bench.dataplane.plot import installed
from bench.dataplane.summary import plain_json
from bench.engine import circumstances, plot, report, summary, targets
from bench.engine.contenders import Contenders
from bench.engine.measure import Run
from bench.engine.options import add_options, plan_of, vocabulary_of
from bench.engine.plan import Plan
from tools.cluster.recipes import ROOT

SCRATCH = ROOT / ".build/bench"
PUBLISHED = ROOT / "docs/benchmarks"
NAME = "engine"

DESCRIPTION = """\
What the local engine serves, beside vLLM's own ways to be called, with the same prompts in one run:

  offline   vllm.LLM.generate: no streams, no server; the ceiling
  async     AsyncLLM in process, a task for each request
  serve     vllm serve, OpenAI completions streamed over HTTP
  session   this engine, called over its gRPC session
  router    the same engine through the router

  run       measures, and writes page, figures and plot; each look is in the JSON file as soon as it
            is there, so that what fails later costs nothing
  report    the page and the plot once more, from a run's JSON file

Every path has processes of its own. With --order alternate they are all up at once and take turns
within each round, which needs memory for four engines; with --order in-turn one is up at a time.
"""

EXAMPLES = """\
examples:
  python -m bench.engine run --quick                          does it work here? some minutes
  python -m bench.engine run --paths serve session --streams 16 64 --rounds 5
  python -m bench.engine run --model Qwen/Qwen2.5-7B-Instruct --streams 1 64 256 --order in-turn
  python -m bench.engine run --load-format dummy --model ./8b-shape --name engine-8b
  python -m bench.engine run --simulated --quick              without a model, seconds
  python -m bench.engine report --from docs/benchmarks/engine.json

files: NAME.md, .json and .svg in docs/benchmarks, with --quick in .build/bench/engine. The logs of
the processes are in .build/bench/engine-PID; they stay after a failure.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="run", choices=("run", "report"), help="default: run"
    )
    parser.add_argument("--out", type=FilePath, help="folder of the results")
    parser.add_argument("--name", default=NAME, help="name of the results' files (default engine)")
    parser.add_argument("--commit", default="", help="the commit, where there is no git history")
    parser.add_argument("--from", dest="source", type=FilePath, help="report: the JSON file")
    add_options(parser)
    return parser


def _tell(line: str) -> None:
    print(line, flush=True)


async def _run(options: argparse.Namespace, plan: Plan, out: FilePath) -> dict[str, Any]:
    record: dict[str, Any] = {
        "format": 1,
        **circumstances.record(options.commit),
        "plan": plan.to_json(),
    }
    paths = ", ".join(path.value for path in plan.paths)
    streams = ", ".join(map(str, plan.streams))
    _tell(f"{paths}; {streams} streams; {plan.rounds} rounds; results in {out}/{options.name}.*")

    def save() -> None:
        text = json.dumps(plain_json(record), indent=1) + "\n"
        (out / f"{options.name}.json").write_text(text, encoding="utf-8")

    try:
        async with Contenders(_folder(), plan, vocabulary_of(plan.model)) as contenders:
            await Run(contenders, plan, record, save, _tell).all()
    finally:
        # Also of a run that was cut off: what is there is worth its page.
        write(record, out, options.name)
    return record


def _folder() -> FilePath:
    """An empty folder for the processes; another run has another."""
    folder = SCRATCH / f"{NAME}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write(record: dict[str, Any], out: FilePath, name: str) -> None:
    """Figures, page and plot; without matplotlib there is no plot."""
    out.mkdir(parents=True, exist_ok=True)
    record = plain_json(record | {"rows": summary.rows(record)})
    record["targets"] = [verdict.to_json() for verdict in targets.verdicts(record)]
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    drawn = bool(record["samples"]) and installed()
    picture = f"{name}.svg" if drawn else ""
    (out / f"{name}.md").write_text(report.page(record, picture), encoding="utf-8")
    if drawn:
        plot.draw(record, out / picture)
    else:
        _tell("no plot: matplotlib is missing (make setup-bench), or there is nothing to draw")
    _tell(f"\nWritten: {out / name}.md, .json{' and .svg' if drawn else ''}")


async def _main(options: argparse.Namespace) -> int:
    if options.command == "report":
        source = options.source or PUBLISHED / f"{options.name}.json"
        record = json.loads(source.read_text(encoding="utf-8"))
        write(record, options.out or source.parent, source.stem)
    else:
        task = asyncio.current_task()
        assert task is not None
        # Ctrl-C is handled by asyncio.run; a SIGTERM must clean up in the same way.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        started = time.monotonic()
        plan = plan_of(options)
        small = options.quick or options.simulated
        out = options.out or (SCRATCH / NAME if small else PUBLISHED)
        out.mkdir(parents=True, exist_ok=True)
        record = await _run(options, plan, out)
        _tell(f"Took {(time.monotonic() - started) / 60:.1f} min.\n")
    print(report.markdown(report.table(summary.rows(record))), end="\n\n")
    print(report.markdown(report.verdict_table(targets.verdicts(record))))
    if record["failures"]:
        _tell(f"\nFAILED: {', '.join(record['failures'])}; see above")
    return 1 if record["failures"] else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 1 when a path failed, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        failed = asyncio.run(_main(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted; everything that had started was stopped.", file=sys.stderr)
        return 130
    if not failed:
        # After a failure the logs stay.
        shutil.rmtree(SCRATCH / f"{NAME}-{os.getpid()}", ignore_errors=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
