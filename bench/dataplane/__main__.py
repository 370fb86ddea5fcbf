"""`python -m bench.dataplane`: the command line. It parses, prints and writes files."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path as FilePath
from typing import Any

from bench.dataplane import (
    circumstances,
    fairness,
    gateways,
    modes,
    plot,
    profile,
    report,
    summary,
    targets,
)
from bench.dataplane import plan as plans
from bench.dataplane.measure import Generator, GeneratorError, Progress, matrix, span
from bench.dataplane.plan import Cell, Form, Path, Plan
from bench.dataplane.stack import Stack
from tools.cluster.process import ClusterError
from tools.cluster.recipes import ROOT

SCRATCH = ROOT / ".build/bench"
PUBLISHED = ROOT / "docs/benchmarks"

DESCRIPTION = """\
What a token costs on its way from an engine to a caller.

  run       the table: every load through every path, the cold message, ten thousand streams
  cold      the CPU of one message that finds the proxy idle
  many      up to 10,000 streams over 100 sessions on one router worker
  fairness  what one tenant's 1,000 streams do to the delays of another's 16
  profile   where the router's time goes under one load (py-spy)
  report    the page and the plot once more, from a run's JSON file

Everything runs on this machine, as real processes: the load generator, an engine, auth, the
router with all that production has on, and proxies to compare with: Envoy and nginx (make
setup-bench), LiteLLM (make setup-bench-litellm), SMG (make setup-bench-smg). What is not installed
has no row. The sim engine has no lean and no HTTP ends. Paths alternate within each round. Close
other programs first: a look that they disturbed is marked, not mended.
"""

EXAMPLES = """\
examples:
  python -m bench.dataplane run --quick               a first impression, two minutes
  python -m bench.dataplane run --streams 64 --pace 20 --paths router-session envoy
  python -m bench.dataplane profile --streams 64 --pace 0
  python -m bench.dataplane run --engine sim --rounds 3
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.dataplane",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=("run", "cold", "many", "fairness", "profile", "report"),
        help="what to do (default: run)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="1 round, few loads, no more parts")
    size.add_argument("--smoke", action="store_true", help="seconds: only shows that it works")
    parser.add_argument("--rounds", type=int, help="looks at each load and path (default 5)")
    parser.add_argument("--window", type=float, help="seconds of each look (default 1)")
    parser.add_argument("--streams", type=int, nargs="+", help="concurrent answers")
    parser.add_argument("--pace", type=int, nargs="+", help="ms of an engine step; 0: unpaced")
    parser.add_argument("--tokens", type=int, help="tokens of an answer (default 256)")
    parser.add_argument("--sessions", type=int, default=0, help="sessions that share the streams")
    parser.add_argument("--paths", type=Path, nargs="+", choices=list(Path), help="paths to take")
    parser.add_argument(
        "--engine",
        choices=("fake", "sim"),
        default="fake",
        help="fake: lean, ready-made chunks (default); sim: the engine's own simulation",
    )
    parser.add_argument("--out", type=FilePath, help="folder of the results")
    parser.add_argument("--from", dest="source", type=FilePath, help="report: the JSON file")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    plan = plans.SMOKE if options.smoke else plans.QUICK if options.quick else plans.FULL
    if options.streams or options.pace is not None or options.tokens or options.sessions:
        plan = replace(
            plan,
            cells=tuple(
                Cell(streams, pace, options.tokens or plans.STEADY_TOKENS, options.sessions)
                for pace in (options.pace if options.pace is not None else (20, 0))
                for streams in options.streams or plans.CONCURRENCIES
            ),
        )
    return replace(
        plan,
        rounds=options.rounds or plan.rounds,
        window=options.window or plan.window,
        paths=tuple(options.paths or plan.paths),
        # Who names the streams gets every path under them.
        all_of_them=bool(options.streams),
    )


def _tell(line: str) -> None:
    print(line, flush=True)


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    plan = _plan(options)
    record = _record(options) | {"plan": plan.to_json()}
    left_out: dict[str, str] = {}
    samples: list[dict[str, Any]] = []
    whole = _whole(options)
    async with Generator.running() as generator:
        for paces in _pace_groups(options.engine, plan):
            _tell("Starting the engine, the router and the proxies …")
            async with Stack(_folder(), options.engine, paces, plan.paths) as stack:
                here = plan.without(stack.absent())
                here = replace(here, cells=tuple(c for c in plan.cells if c.pace_ms in paces))
                for path in sorted(stack.absent() & set(plan.paths)):
                    left_out[path.value] = _why_left_out(path)
                    _tell(f"Left out: {path.label}: {left_out[path.value]}")
                for line in _estimate(options, here, whole):
                    _tell(line)
                progress = Progress(here.looks, here.seconds, _tell)
                samples += await matrix(stack, generator, here, progress)
    record |= {"rows": summary.rows(plan.cells, samples), "samples": samples}
    record |= {"left_out": left_out}
    if whole:
        record |= await _cold(options) | await _many(options)
    return record | {"targets": [v.to_json() for v in targets.verdicts(record)]}


def _whole(options: argparse.Namespace) -> bool:
    """Whether the cold message and the many streams belong to the run."""
    part = options.quick or options.smoke or options.streams or options.pace or options.paths
    return not part and options.engine == "fake"


def _why_left_out(path: Path) -> str:
    if path.proxy:
        return f"not installed here; {gateways.INSTALL[path.proxy]} does it"
    if path.form is Form.HTTP:
        return "no gateway over HTTP is installed to hold it against"
    return "this engine has no such door"


def _estimate(options: argparse.Namespace, plan: Plan, whole: bool) -> Iterator[str]:
    """What is to come, and for how long."""
    yield (
        f"The table: {plan.looks} looks ({len(plan.cells)} loads, {len(plan.paths)} paths, "
        f"{plan.rounds} rounds), about {span(plan.seconds)}."
    )
    if whole:
        cold, many = _cold_seconds(options), _many_seconds(options)
        yield f"Then the cold message, about {span(cold)}, and many streams, about {span(many)}."
        ends = datetime.now().astimezone() + timedelta(seconds=plan.seconds + cold + many)
        yield f"All of it: about {span(plan.seconds + cold + many)}, until {ends:%H:%M}."


def _pace_groups(engine: str, plan: Plan) -> list[tuple[int, ...]]:
    """Paces that one stack serves: the fake takes all, a sim engine has one."""
    paces = tuple(dict.fromkeys(cell.pace_ms for cell in plan.cells))
    return [paces] if engine == "fake" else [(pace,) for pace in paces]


def _effort(
    options: argparse.Namespace, warm: float, window: float, rounds: int = 3
) -> modes.Effort:
    rounds = 1 if options.quick or options.smoke else options.rounds or rounds
    shorter = 0.2 if options.smoke else 0.5 if options.quick else 1.0
    return modes.Effort(rounds, warm * shorter, options.window or window * shorter)


def _cold_effort(options: argparse.Namespace) -> modes.Effort:
    return _effort(options, 0.5, 2.0, rounds=5)


def _cold_seconds(options: argparse.Namespace) -> float:
    effort = _cold_effort(options)
    looks = effort.rounds * len(modes.COLD_PACES) * len(modes.COLD_PATHS)
    return looks * (effort.warm + effort.window + plans.BETWEEN_S)


async def _cold(options: argparse.Namespace) -> dict[str, Any]:
    effort = _cold_effort(options)
    async with (
        Generator.running() as generator,
        Stack(_folder(), "fake", modes.COLD_PACES, modes.COLD_PATHS) as stack,
    ):
        looks = effort.rounds * len(modes.COLD_PACES) * len(modes.COLD_PATHS)
        progress = Progress(looks, _cold_seconds(options), _tell)
        return {"cold": await modes.cold(stack, generator, effort, progress)}


def _many_effort(options: argparse.Namespace) -> modes.Effort:
    return _effort(options, 3.5, 3.0, rounds=5)


def _many_seconds(options: argparse.Namespace) -> float:
    effort = _many_effort(options)
    return effort.rounds * len(modes.MANY) * (effort.warm + effort.window + 1.0)


async def _many(options: argparse.Namespace) -> dict[str, Any]:
    effort = _many_effort(options)
    # A memory of its own for the figures of RSS: nothing else has run in this router.
    async with (
        Generator.running() as generator,
        Stack(_folder(), "fake", (modes.MANY_PACE,), (Path.ROUTER_SESSION,)) as stack,
    ):
        progress = Progress(effort.rounds * len(modes.MANY), _many_seconds(options), _tell)
        return {"many": await modes.many(stack, generator, effort, progress)}


async def _fairness(options: argparse.Namespace) -> dict[str, Any]:
    effort = _effort(options, 1.0, 6.0)
    crowds: tuple[Cell, ...] = fairness.CROWDS
    if options.streams:
        crowds = tuple(
            Cell(streams, fairness.PACE, sessions=options.sessions) for streams in options.streams
        )
    form = options.paths[0].form if options.paths else Form.SESSION
    async with (
        Generator.running() as few,
        Generator.running() as crowd,
        Stack(_folder(), "fake", (fairness.PACE,), (Path.ROUTER_SESSION,)) as stack,
    ):
        looks = effort.rounds * fairness.looks(crowds)
        progress = Progress(looks, looks * (effort.warm + effort.window + 2.0), _tell)
        tenants = fairness.Tenants(few, crowd)
        found = await fairness.fairness(stack, tenants, effort, progress, form=form, crowds=crowds)
        return {"fairness": found}


async def _profile(options: argparse.Namespace) -> None:
    for pace in options.pace if options.pace is not None else (20, 0):
        for path in options.paths or (Path.ROUTER_SESSION,):
            async with (
                Generator.running() as generator,
                Stack(_folder(), options.engine, (pace,), (path,)) as stack,
            ):
                for streams in options.streams or (64,):
                    cell = Cell(streams, pace, options.tokens or plans.STEADY_TOKENS)
                    file = SCRATCH / f"profile-{path}-{cell.name}.txt"
                    _tell(
                        await profile.record(
                            stack, generator, cell, path, options.window or 8.0, file
                        )
                    )
                    _tell(f"collapsed stacks: {file}")


def _record(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "format": 1,
        "engine": options.engine,
        "circumstances": circumstances.record(),
        "rows": [],
        "samples": [],
    }


def _folder() -> FilePath:
    """An empty folder for the processes of one stack; another run has another."""
    folder = SCRATCH / f"stack-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write(record: dict[str, Any], out: FilePath, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = summary.plain_json(record)
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture = ""
    if record["rows"] and plot.installed():
        picture = f"{name}.svg"
        plot.draw(record["rows"], out / picture)
    (out / f"{name}.md").write_text(report.page(record, picture), encoding="utf-8")
    _tell(f"\nWritten: {out / name}.md, .json{' and .svg' if picture else ''}")


def _out(options: argparse.Namespace, name: str) -> FilePath:
    """Only a whole run is published; anything smaller goes to the scratch folder."""
    if options.out is not None:
        return FilePath(options.out)
    plain = options.command == "run" and _plan(options) == plans.FULL and options.engine == "fake"
    return PUBLISHED if plain else SCRATCH / name


async def _main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    # Ctrl-C is handled by asyncio.run; a SIGTERM must clean up in the same way.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.command == "profile":
        await _profile(options)
        return
    if options.command == "report":
        source = options.source or PUBLISHED / "dataplane.json"
        record = json.loads(source.read_text(encoding="utf-8"))
        _write(
            record,
            options.out or source.parent,
            "dataplane",
        )
        _tell(targets.headline(record))
        return
    if options.command == "run":
        record = await _run(options)
    else:
        part = {"cold": _cold, "many": _many, "fairness": _fairness}[options.command]
        record = _record(options) | await part(options)
    out = _out(options, options.command)
    _write(record, out, "dataplane")
    _tell(f"Took {(time.monotonic() - started) / 60:.1f} min.\n")
    _tell(
        report.page(summary.plain_json(record), "") if options.command != "run" else _short(record)
    )


def _short(record: dict[str, Any]) -> str:
    """The claim, for the terminal."""
    whole = report.page(summary.plain_json(record), "")
    _, found, rest = whole.partition("## The claim")
    return found + rest.partition("\n## ")[0] if found else ""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 1 with the reason when it fails, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    try:
        asyncio.run(_main(options))
        # After a failure the logs stay: the message names them.
        shutil.rmtree(SCRATCH / f"stack-{os.getpid()}", ignore_errors=True)
    except (ClusterError, GeneratorError, profile.ProfileError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted; everything that had started was stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
