"""Checks the chart as users will install it, and writes the page of its values.

    python -m tools.chart check    helm lint, and every example and mode against Kubernetes' schemas
    python -m tools.chart docs     writes docs/install/values.md from values.schema.json
    python -m tools.chart render NAME   prints what an example renders to

`make chart` is the first. It needs helm (`make helm`) and no cluster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tools.chart import helm, reference, validate


def check() -> int:
    """Prints a table of cases and versions of Kubernetes; 1 when something is wrong."""
    cases = (*helm.MODES, *helm.examples())
    wide = max(len(case.name) for case in cases)
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="anabranch-chart-") as scratch:
        chart = helm.copy_with_stand_in(Path(scratch, "anabranch"))
        heads = ["lint", "objects", *validate.VERSIONS]
        print(f"{'':{wide}}  " + "  ".join(f"{head:>7}" for head in heads), flush=True)
        for case in cases:
            row, faults = _row(chart, case)
            print(f"{case.name:{wide}}  " + "  ".join(f"{cell:>7}" for cell in row), flush=True)
            found += [f"{case.name}: {fault}" for fault in faults]
    for fault in found:
        print(f"  ✗ {fault}")
    kinds = ", ".join(sorted({kind for _, kind in validate.OPERATORS}))
    print(f"\n{kinds} are checked by API version and kind alone: Kubernetes has no schema of them.")
    print("HashiCorp's chart is a stand-in here: `helm dependency build` fetches the real one.")
    return 1 if found else 0


def _row(chart: Path, case: helm.Case) -> tuple[list[str], list[str]]:
    faults: list[str] = []
    try:
        helm.lint(chart, case)
        row = ["ok"]
    except helm.HelmError as wrong:
        row, faults = ["✗"], [f"helm lint: {wrong}"]
    for version in validate.VERSIONS:
        try:
            objects = helm.render(chart, case, kube_version=version)
        except helm.HelmError as wrong:
            return [*row, "✗"], [*faults, f"helm template: {wrong}"]
        if len(row) == 1:
            row.append(str(len(objects)))
        wrong_here = [f"Kubernetes {version}: {one}" for one in validate.faults(objects, version)]
        row.append("✗" if wrong_here else "ok")
        faults += wrong_here
    return row, faults


def render(name: str) -> int:
    """Prints an example's manifests."""
    cases = {case.name: case for case in (*helm.MODES, *helm.examples())}
    if name not in cases:
        print(f"there is no {name}; there are {', '.join(cases)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="anabranch-chart-") as scratch:
        print(helm.template(helm.copy_with_stand_in(Path(scratch, "anabranch")), cases[name]))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.chart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("check", "docs", "render"))
    parser.add_argument("name", nargs="?", default="", help="with render: an example")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            return check()
        if options.command == "render":
            return render(options.name)
        reference.write()
    except helm.HelmError as wrong:
        print(f"chart: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
