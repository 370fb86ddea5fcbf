"""python -m bench.cloud run [--quick]: measures the cloud proxy, prints and writes its table."""

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
from pathlib import Path
from typing import Any

from bench import circumstances
from bench.cloud import measure, report
from bench.cloud.plan import CONTENDERS, QUICK, Plan
from bench.cloud.stack import Stack
from bench.dataplane.gateways import LITELLM, version

ROOT = circumstances.ROOT
_PACKAGES = ("aiohttp", "orjson", "uvloop", "protobuf", "openai", "anthropic", "google-genai")


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


async def run(plan: Plan) -> dict[str, Any]:
    """All rounds. Raises measure.LookFailed."""
    record: dict[str, Any] = {
        "circumstances": circumstances.record(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "litellm": version(LITELLM, "litellm"),
        },
        "plan": dataclasses.asdict(plan),
        "looks": [],
    }
    contenders = [c for c in CONTENDERS if measure.can_run(c)]
    for absent in sorted({c.kind for c in CONTENDERS} - {c.kind for c in contenders}):
        say(f"{absent} is not installed and has no row: make setup-bench-{absent}")
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        for number in range(1, plan.rounds + 1):
            # A proxy of its own a round, so that peaks are of this round.
            async with Stack(Path(folder) / str(number)) as stack:
                began = time.monotonic()
                look: dict[str, Any] = {"cost": {}}
                look["memory"] = await measure.memory(stack, plan)
                look["cancels"] = await measure.cancels(stack, plan, f"c{number}x")
                for load in plan.loads:
                    found = look["cost"][load.name] = {}
                    for contender in contenders:
                        cost = found[contender.name] = await measure.cost(stack, contender, load)
                        say(
                            f"round {number}/{plan.rounds}  {load.name:8} {contender.name:24}"
                            f"{cost['chunk_us']:8.1f} µs a chunk"
                            f"{cost['request_ms']:7.2f} ms a request"
                        )
                record["looks"].append(look)
                say(f"round {number}/{plan.rounds} took {time.monotonic() - began:.0f} s")
    return record


def write(record: dict[str, Any], folder: Path) -> None:
    """Page, figures and plot; without matplotlib there is no plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cloud.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture = ""
    try:
        from bench.cloud.plot import draw
    except ImportError:
        say("no plot: matplotlib is missing (make setup-bench)")
    else:
        picture = "cloud.svg"
        draw(record, folder / picture)
    (folder / "cloud.md").write_text(report.page(record, picture), encoding="utf-8")
    say(f"written to {folder}")


def main() -> int:
    """Parses the arguments and runs."""
    parser = argparse.ArgumentParser(prog="python -m bench.cloud", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure (about 8 minutes)")
    runner.add_argument("--quick", action="store_true", help="one short round; proves nothing")
    runner.add_argument("--out", type=Path, help="where to write (docs/benchmarks)")
    again = commands.add_parser("report", help="make the page anew from its JSON file")
    again.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    arguments = parser.parse_args()
    quick = arguments.command == "run" and arguments.quick
    folder = arguments.out or ROOT / (".build/bench" if quick else "docs/benchmarks")
    if arguments.command == "report":
        record = json.loads((folder / "cloud.json").read_text(encoding="utf-8"))
    else:
        try:
            record = asyncio.run(run(QUICK if quick else Plan()))
        except measure.LookFailed as failed:
            say(f"failed: {failed}")
            return 1
    write(record, folder)
    print(report.markdown(report.table(record)), end="\n\n")
    print(report.markdown(report.targets(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
