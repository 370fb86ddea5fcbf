"""Renders the chart with the real helm. It judges nothing: validate.py and the tests do.

Helm renders no chart whose dependency is absent, whatever the condition says, and HashiCorp's chart
is fetched by `helm dependency build` alone. So what is rendered here is a copy of the chart with a
stand-in for it, of the same name and a fitting version: one ConfigMap that says so, and holds the
values that HashiCorp's chart would have been given.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/helm/anabranch"
EXAMPLES = CHART / "examples"
RELEASE = "anabranch"
NAMESPACE = "anabranch"
STAND_IN = "stand-in-for-hashicorps-chart"
TIMEOUT = 120.0
"""Seconds that helm may take."""

Object = dict[str, Any]


class HelmError(Exception):
    """What helm printed when it failed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set of values: an example, and changes to it."""

    name: str
    example: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


MODES = (
    Case("defaults"),
    Case("consul-none", "one-gpu", {"consul": {"mode": "none"}}),
    Case("consul-existing", "one-gpu", {"consul": {"mode": "existing"}}),
    Case(
        "consul-enterprise",
        "one-gpu",
        {"consul": {"mode": "existing", "namespace": "llm", "partition": "eu"}},
    ),
    Case("consul-hashicorp", "one-gpu", {"consul": {"mode": "hashicorp", "enabled": True}}),
)
"""The chart's own values, and one example in each way for processes to find each other."""


def examples() -> tuple[Case, ...]:
    """Every example that comes with the chart."""
    return tuple(Case(path.stem, path.stem) for path in sorted(EXAMPLES.glob("*.yaml")))


def helm_binary() -> Path | None:
    """The helm on PATH, else that of `make helm`; None when there is neither."""
    found = shutil.which("helm", path=os.environ.get("PATH", "") + f":{ROOT / '.tools/bin'}")
    return Path(found) if found else None


def run(*arguments: str) -> str:
    """Standard output of helm. Raises HelmError."""
    binary = helm_binary()
    if binary is None:
        raise HelmError("there is no helm: run `make helm`")
    done = subprocess.run(
        [str(binary), *arguments], check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode != 0:
        raise HelmError((done.stdout + done.stderr).strip())
    return done.stdout


def copy_with_stand_in(target: Path, chart: Path = CHART) -> Path:
    """The chart at `target`, with a stand-in for HashiCorp's chart."""
    shutil.copytree(chart, target, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    wanted = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    (dependency,) = wanted["dependencies"]
    stand_in = target / "charts" / dependency["name"]
    (stand_in / "templates").mkdir(parents=True)
    about = {
        "apiVersion": "v2",
        "name": dependency["name"],
        "version": dependency["version"].lstrip("~^"),
        "description": "A stand-in for HashiCorp's chart: it installs no Consul",
    }
    (stand_in / "Chart.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": STAND_IN},
        "data": {"values.json": "@"},
    }
    text = yaml.safe_dump(config_map).replace("'@'", "{{ .Values | toJson | quote }}")
    (stand_in / "templates" / "stand-in.yaml").write_text(text, encoding="utf-8")
    return target


def render(
    chart: Path,
    case: Case,
    *,
    kube_version: str = "",
    values: Sequence[Path] = (),
    upgrade: bool = False,
) -> list[Object]:
    """The objects that the chart makes of a case's values. Raises HelmError."""
    return objects(template(chart, case, kube_version=kube_version, values=values, upgrade=upgrade))


def template(
    chart: Path,
    case: Case,
    *,
    kube_version: str = "",
    values: Sequence[Path] = (),
    upgrade: bool = False,
) -> str:
    """As `render`, as the text that helm prints."""
    arguments = ["template", RELEASE, str(chart), "--namespace", NAMESPACE]
    arguments += _values(case, values)
    if kube_version:
        arguments += ["--kube-version", kube_version]
    if upgrade:
        arguments.append("--is-upgrade")
    return run(*arguments)


def lint(chart: Path, case: Case) -> str:
    """What `helm lint --strict` says. Raises HelmError when something is wrong."""
    return run("lint", "--strict", str(chart), *_values(case, ()))


def notes(chart: Path, case: Case) -> str:
    """What `helm install` would say in the end."""
    arguments = ["install", RELEASE, str(chart), "--namespace", NAMESPACE, "--dry-run=client"]
    printed = run(*arguments, *_values(case, ()))
    return printed.partition("\nNOTES:\n")[2]


def objects(text: str) -> list[Object]:
    """The objects in a stream of YAML."""
    # The C loader: ten times as fast, where PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [found for found in yaml.load_all(text, Loader=loader) if found]


def _values(case: Case, values: Sequence[Path]) -> list[str]:
    files = [EXAMPLES / f"{case.example}.yaml"] if case.example else []
    arguments = [word for path in [*files, *values] for word in ("--values", str(path))]
    for key, value in case.changes.items():
        arguments += ["--set-json", f"{key}={json.dumps(value)}"]
    return arguments
