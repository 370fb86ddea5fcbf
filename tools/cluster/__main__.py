"""`python -m tools.cluster up|down|status`: a cluster that outlives the command.

It only parses arguments and prints; cluster.py and state.py do the work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tools.cluster import health, state
from tools.cluster.cluster import Cluster
from tools.cluster.process import ClusterError, ProcessRecord
from tools.cluster.recipes import MODEL, ROOT, SIM_MODEL, EngineKind, EngineSpec, Ports

RUN_DIR = ROOT / ".run/cluster"

console = Console(highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.cluster", description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="logs, state, secrets")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything and return when it serves")
    up.add_argument("--engine", choices=list(EngineKind), default=EngineKind.VLLM, type=EngineKind)
    up.add_argument("--engines", type=int, default=1, help="how many engines (default 1)")
    up.add_argument("--no-cloud", action="store_true", help="no cloud proxy, no simulator")
    up.add_argument("--ephemeral", action="store_true", help="free ports, not the documented ones")
    up.add_argument("--log-level", default="info", help="of every service (default info)")
    up.add_argument(
        "--router-workers",
        type=int,
        default=int(os.environ.get("ANABRANCH_ROUTER_WORKERS", "1")),
        help="processes of the router (default ANABRANCH_ROUTER_WORKERS, or 1)",
    )
    down = commands.add_parser("down", help="end everything that `up` started")
    down.add_argument("--quiet", action="store_true", help="print failures alone")
    status = commands.add_parser("status", help="show every process; exit status 1 if one is ill")
    status.add_argument("--json", action="store_true", help="for programs")
    return parser


async def _up(options: argparse.Namespace) -> int:
    present = state.load(options.run_dir)
    if present and all(record.alive for record in present):
        console.print("It is up already.")
        return await _status(options.run_dir, as_json=False)
    kind: EngineKind = options.engine
    names = [f"engine-{number}" for number in range(1, options.engines + 1)]
    model = MODEL if kind is EngineKind.VLLM else SIM_MODEL
    cluster = Cluster(
        options.run_dir,
        engines=[EngineSpec(name, kind, model) for name in names],
        cloud=not options.no_cloud,
        ports=Ports.free() if options.ephemeral else Ports(),
        detached=True,
        log_level=options.log_level,
        router_workers=options.router_workers,
        tell=lambda line: console.print(f"  [green]✓[/] {line}"),
    )
    started = time.monotonic()
    console.print(f"Starting the cluster; its logs: {cluster.logs}")
    await cluster.start()
    console.print(f"Up in {time.monotonic() - started:.1f} s. To use it from this shell:\n")
    console.print(f"    source {cluster.run_dir / 'env'}")
    console.print('    .venv/bin/anabranch generate "What is the capital of France?"\n')
    return 0


async def _down(run_dir: Path, *, quiet: bool) -> int:
    present = state.load(run_dir)
    if not present:
        if not quiet:
            console.print("Nothing is running.")
        return 0
    forced = await state.stop(present)
    state.save(run_dir, [])
    if not quiet:
        console.print(f"Stopped {len(present)} processes.")
    if forced:
        console.print(f"[yellow]Had to kill what was left of: {', '.join(forced)}[/]")
    return 0


async def _health(record: ProcessRecord) -> str:
    return await health.ask(record.probe, record.address) if record.alive else "DEAD"


async def _status(run_dir: Path, *, as_json: bool) -> int:
    present = state.load(run_dir)
    answers = await asyncio.gather(*(_health(record) for record in present))
    if as_json:
        rows = [
            record.to_json() | {"health": answer}
            for record, answer in zip(present, answers, strict=True)
        ]
        print(json.dumps({"run_dir": str(run_dir), "processes": rows}, indent=2))
    elif not present:
        console.print("Nothing is running. Start it with `make up`.")
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("process", "pid", "address", "http", "health"):
            table.add_column(heading, no_wrap=True)
        for record, answer in zip(present, answers, strict=True):
            colour = "green" if answer == "SERVING" else "red"
            table.add_row(
                record.name,
                str(record.pid),
                record.address,
                record.http or "–",
                f"[{colour}]{answer}[/]",
            )
        console.print(table)
        console.print(f"Logs: {run_dir / 'logs'}", markup=False)
    return 0 if present and all(answer == "SERVING" for answer in answers) else 1


async def _run(options: argparse.Namespace) -> int:
    task = asyncio.current_task()
    if task is not None:
        # Ctrl-C is handled by asyncio.run; a SIGTERM must clean up in the same way.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.command == "up":
        return await _up(options)
    if options.command == "down":
        return await _down(options.run_dir, quiet=options.quiet)
    return await _status(options.run_dir, as_json=options.json)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 1 with the reason when it fails, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    options.run_dir = options.run_dir.resolve()
    try:
        return asyncio.run(_run(options))
    except ClusterError as error:
        console.print(f"[red]{options.command} failed:[/] ", end="")
        console.print(str(error), markup=False)
        console.print(f"All logs are in {options.run_dir / 'logs'}", markup=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; everything that had started was stopped.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
