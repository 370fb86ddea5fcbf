"""Runs every static check, two at a time, and says which ones failed and why.

`make lint` is this. It fixes nothing; `make format` does. The rules live with their tools:
pyproject.toml (ruff, mypy, import-linter), buf.yaml, tools/check_rooms.py; of
hadolint every rule is in force.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent

CHECKS: dict[str, tuple[str, ...]] = {
    # The slowest first, so that two workers finish together.
    "types (mypy)": (
        *(sys.executable, "-m", "mypy"),
        *("anabranch", "services", "tools", "bench", "examples/python"),
    ),
    "style (ruff check)": (str(SCRIPTS / "ruff"), "check", "--quiet", "."),
    "form (ruff format)": (str(SCRIPTS / "ruff"), "format", "--check", "--quiet", "."),
    "imports (import-linter)": (str(SCRIPTS / "lint-imports"), "--no-cache"),
    "images (hadolint)": (
        *(str(SCRIPTS / "hadolint"), "--failure-threshold", "info"),
        "deploy/docker/Dockerfile",
    ),
    "rooms": (sys.executable, "-m", "tools.check_rooms"),
    "dashboards": (sys.executable, "-m", "tools.dashboards", "check"),
    "contracts: stubs": (sys.executable, "-m", "tools.protos", "check"),
    "contracts: buf lint": (sys.executable, "-m", "tools.protos", "lint"),
    "contracts: buf breaking": (sys.executable, "-m", "tools.protos", "breaking"),
}


@dataclass(frozen=True)
class Outcome:
    """How one check ended."""

    name: str
    passed: bool
    output: str
    seconds: float


def _run(name: str) -> Outcome:
    started = time.monotonic()
    done = subprocess.run(
        CHECKS[name],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output = (done.stdout + done.stderr).strip()
    return Outcome(name, done.returncode == 0, output, time.monotonic() - started)


def main() -> int:
    """Runs all checks, prints one line each and the findings of those that failed."""
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:
        outcomes = []
        for outcome in pool.map(_run, CHECKS):
            mark = "✓" if outcome.passed else "✗"
            print(f"  {mark} {outcome.name} ({outcome.seconds:.1f} s)", flush=True)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"\n{outcome.name}\n{outcome.output}")
    took = time.monotonic() - started
    print(f"\nlint: {len(failed)} of {len(outcomes)} checks failed ({took:.1f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
