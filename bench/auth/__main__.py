"""Measures authentication: what verifying and issuing tokens costs, how soon a revocation holds
everywhere, whether anything fails while keys rotate, and what the time of a refusal tells.

    python -m bench.auth run                            everything, about eight minutes
    python -m bench.auth run --quick                    a first look; to .build/bench
    python -m bench.auth run --sections timing          one question in full length
    python -m bench.auth report                         the page anew from its JSON file
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import circumstances
from bench.auth import plan as plans
from bench.auth import quotas, report, revocation, rotation, targets, timing, verification
from bench.auth.failure import LookFailed
from bench.auth.issuance import EXCHANGE, FIRST, REPEATED, Issuance
from bench.auth.plan import QUICK, SECTIONS, Plan
from bench.auth.stack import replicas
from bench.dataplane.meter import percentile
from tests.support.postgres import binaries, postgres_server
from tools.cluster.process import ClusterError

ROOT = circumstances.ROOT
_PACKAGES = ("pyjwt", "cryptography", "argon2-cffi", "sqlalchemy", "aiosqlite", "asyncpg",
             "grpcio", "uvloop")  # fmt: skip

Look = Callable[[Path, Plan], Awaitable[Any]]


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


async def run(plan: Plan, sections: Sequence[str]) -> dict[str, Any]:
    """All rounds of these sections. Raises LookFailed, ClusterError."""
    record: dict[str, Any] = {
        "circumstances": circumstances.record(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "plan": dataclasses.asdict(plan),
    }
    looks: dict[str, Look] = {
        plans.VERIFICATION: _verification,
        plans.ISSUANCE: _issuance,
        plans.ROTATION: rotation.look,
        plans.REVOCATION: _revocation,
        plans.TIMING: timing.look,
        plans.QUOTAS: _quotas,
    }
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        for section in sections:
            began = time.monotonic()
            say(f"{section} …")
            record[section] = await looks[section](Path(folder) / section, plan)
            say(f"{section} took {time.monotonic() - began:.0f} s")
    return record


async def _verification(_: Path, plan: Plan) -> list[Any]:
    looks = []
    for number in range(1, plan.rounds + 1):
        looks.append(await verification.look(plan))
        costs = ", ".join(f"{name} {cost['cpu_us']:.1f}" for name, cost in looks[-1].items())
        say(f"round {number}/{plan.rounds}  µs CPU: {costs}")
    return looks


async def _issuance(folder: Path, plan: Plan) -> list[Any]:
    looks = []
    async with replicas(folder) as auth:
        issuance = Issuance(auth, plan)
        say(f"making {plan.clients + plan.newcomers} clients")
        await issuance.prepare()
        for number in range(1, plan.rounds + 1):
            looks.append(await issuance.look())
            rates = ", ".join(
                f"{name} {looks[-1][name]['a_second']:.0f}" for name in (FIRST, REPEATED, EXCHANGE)
            )
            say(f"round {number}/{plan.rounds}  a second of one core: {rates}")
    return looks


async def _revocation(folder: Path, plan: Plan) -> dict[str, Any]:
    found = {}
    with ExitStack() as stack:
        urls = {"SQLite": ""}
        if binaries() is None:
            say("PostgreSQL is not installed and has no rows")
        else:
            urls["PostgreSQL"] = stack.enter_context(postgres_server())
        for database, url in urls.items():
            found[database] = await revocation.look(folder / database, plan, url)
            for kind, followed, seconds in targets.delays({plans.REVOCATION: found}, database):
                p99 = percentile(seconds, 99)
                say(f"{database:10} {kind:8} {followed:18} p99 {p99:.3f} s of {len(seconds)}")
    return found


async def _quotas(_: Path, plan: Plan) -> Any:
    if not quotas.available():
        say("bench.auth.quota_overshoot is not there, so quotas have no rows")
        return {}
    return await quotas.look(plan)


def write(record: dict[str, Any], folder: Path) -> None:
    """Page, figures and plot; without matplotlib there is no plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "auth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture = ""
    try:
        from bench.auth.plot import draw
    except ImportError:
        say("no plot: matplotlib is missing (make setup-bench)")
    else:
        picture = "auth.svg"
        draw(record, folder / picture)
    (folder / "auth.md").write_text(report.page(record, picture), encoding="utf-8")
    say(f"written to {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.auth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure, and write page, figures and plot")
    runner.add_argument(
        "--quick", action="store_true", help="one short round of everything; proves nothing"
    )
    runner.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION",
        help=f"only these: {', '.join(SECTIONS)}; with fewer than all, to .build/bench",
    )  # fmt: skip
    runner.add_argument("--out", type=Path, help="where to write (docs/benchmarks)")
    again = commands.add_parser("report", help="make the page anew from its JSON file")
    again.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="where it lies")
    return parser


def main() -> int:
    """Parses the arguments and runs; 1 with the reason when a look shows nothing."""
    arguments = _parser().parse_args()
    if arguments.command == "report":
        folder = arguments.out
        record = json.loads((folder / "auth.json").read_text(encoding="utf-8"))
    else:
        # Only a whole run in full length replaces the page of the documentation.
        whole = not arguments.quick and set(arguments.sections) == set(SECTIONS)
        folder = arguments.out or ROOT / ("docs/benchmarks" if whole else ".build/bench")
        try:
            record = asyncio.run(run(QUICK if arguments.quick else Plan(), arguments.sections))
        except (LookFailed, ClusterError) as failed:
            say(f"failed: {failed}")
            return 1
        except KeyboardInterrupt:
            say("interrupted; everything that had started was stopped")
            return 130
    write(record, folder)
    print(report.markdown(report.target_rows(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
