"""The page about Kubernetes is true: what needs no cluster is run, the rest is held against helm,
kubectl and the command line's own help."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from anabranch.cli import main as command_line
from tests.support.chart import needs_helm
from tools.chart import helm
from tools.chart.helm import CHART, ROOT

PAGE = ROOT / "docs/install/kubernetes.md"
TEXT = PAGE.read_text(encoding="utf-8")
PATH = f"{os.environ.get('PATH', '')}:{ROOT / '.tools/bin'}"
RUNS = ("helm lint", "helm template", "helm show")
TAKES_NO_CLUSTER = ("head ", "kubectl -n anabranch create secret generic")


def lines() -> list[str]:
    """Every command of the page, and those of the notes and the examples."""
    return [
        line.strip()
        for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
        for line in block.splitlines()
    ]


def of_program(*names: str) -> Iterator[list[str]]:
    """Commands of these programs, pipes taken apart, as words."""
    for line in lines():
        for part in re.split(r"\s\|\s|\s>\s|&$", line):
            words = shlex.split(part)
            if words and words[0] in names:
                yield words


@pytest.fixture
def checkout(tmp_path: Path, chart: Path) -> Path:
    """A folder in which the page's paths are those of a checkout, dependency fetched."""
    target = tmp_path / "deploy/helm"
    target.mkdir(parents=True)
    shutil.copytree(chart, target / "anabranch")
    return tmp_path


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helm.copy_with_stand_in(tmp_path_factory.mktemp("docs") / "anabranch")


@needs_helm
@pytest.mark.parametrize("line", [line for line in lines() if line.startswith(RUNS)])
def test_a_command_of_helms_that_needs_no_cluster_runs_as_printed(checkout: Path, line: str):
    done = subprocess.run(
        shlex.split(line),
        cwd=checkout,
        env={**os.environ, "PATH": PATH},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@needs_helm
def test_secrets_are_made_as_printed_and_are_those_that_the_chart_asks_for(tmp_path: Path):
    """With the option that the page names for looking at them first."""
    for name in ("postgresql.url", "redis.url", "deepseek.key"):
        (tmp_path / name).write_text("x\n")
    made = {}
    for line in lines():
        if not line.startswith(TAKES_NO_CLUSTER):
            continue
        line = line.partition(" | kubectl apply")[0]
        if line.startswith("kubectl") and "--dry-run" not in line:
            line += " --dry-run=client --output yaml"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=tmp_path,
            env={**os.environ, "PATH": PATH},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        if line.startswith("kubectl"):
            found = yaml.safe_load(done.stdout)
            made[found["metadata"]["name"]] = set(found["data"])
    assert made == {
        "anabranch-identities": {"admin", "router", "tester"},
        "anabranch-auth-keys": {"key-encryption-secret"},
        "anabranch-postgresql": {"url"},
        "anabranch-redis": {"url"},
        "anabranch-provider-keys": {"deepseek"},
    }
    assert len((tmp_path / "admin").read_text()) >= 32


@needs_helm
@pytest.mark.slow
@pytest.mark.parametrize("program", ["helm", "kubectl"])
def test_every_option_is_one_that_the_program_has(program: str):
    checked = 0
    for words in of_program(program):
        verbs, options = _taken_apart(words)
        known = _help(program, verbs)
        for option in options:
            checked += 1
            assert re.search(rf"(^|\s|,){re.escape(option)}\b", known), (words, option)
    assert checked > 5


def _taken_apart(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The words that say what is done, and the options' names."""
    two = {"create", "rollout", "dependency", "show"}
    plain = [word for word in words[1:] if not word.startswith("-") and word != "anabranch"]
    depth = 2 if plain[0] in two else 1
    if plain[:2] == ["create", "secret"]:
        depth = 3
    options = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
    return tuple(plain[:depth]), options


@cache
def _help(program: str, verbs: tuple[str, ...]) -> str:
    text = ""
    commands = [[program, *verbs, "--help"]]
    if program == "kubectl":
        commands.append([program, "options"])
    for command in commands:
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": PATH},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stderr)
        text += done.stdout
    return text


def test_every_command_of_our_own_exists():
    for words in of_program("anabranch"):
        assert words[1] in command_line.commands


def test_files_that_the_page_names_are_there():
    for words in of_program("docker"):
        file, target = words[words.index("--file") + 1], words[words.index("--target") + 1]
        assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / file).read_text(), re.MULTILINE)
    for name in re.findall(r"`(?:deploy/helm/anabranch/)?(?:examples/)?([\w-]+\.yaml)`", TEXT):
        assert (CHART / "examples" / name).is_file(), name
    examples = {path.name for path in (CHART / "examples").glob("*.yaml")}
    assert examples <= set(re.findall(r"`([\w-]+\.yaml)`", TEXT))
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_every_value_that_the_page_names_is_one():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    pool = values["engineDefaults"]
    for name in re.findall(r"`([a-z]\w+(?:\.\w+)+)`", TEXT):
        if name.partition(".")[0] not in values:
            continue
        at = values
        for part in name.split("."):
            assert part in at, name
            at = at[part]
    for name in ("keda", "download", "rollingUpdate", "modelVolume"):
        assert name in pool


def test_what_the_chart_makes_is_called_as_the_page_says():
    for name in re.findall(r"(?:service|deployment)/anabranch-(\w+)", TEXT):
        assert name in ("router", "auth")
