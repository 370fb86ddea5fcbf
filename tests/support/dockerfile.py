"""deploy/docker/Dockerfile as stages with their instructions; builds nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it, as (instruction, rest of the line)."""

    name: str
    base: str
    lines: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        """The arguments of each such instruction of this stage alone."""
        return [rest for name, rest in self.lines if name == instruction]


def stages() -> dict[str, Stage]:
    """Every stage by its name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found: dict[str, Stage] = {}
    name, base, body = "", "", []  # type: tuple[str, str, list[tuple[str, str]]]
    for line in filter(None, (line.strip() for line in lines)):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            if name:
                found[name] = Stage(name, base, tuple(body))
            base, _, name = rest.split()
            body = []
        elif name:
            body.append((instruction, " ".join(rest.split())))
    found[name] = Stage(name, base, tuple(body))
    return found


STAGES = stages()
TARGETS = ("router", "auth", "cloud-proxy", "engine-cpu", "engine-gpu", "tools", "model")
SERVICES = TARGETS[:5]


def lineage(name: str) -> list[Stage]:
    """The stage and those that it stands on, the farthest first; a base from outside ends it."""
    stage = STAGES[name]
    return [*(lineage(stage.base) if stage.base in STAGES else []), stage]


def last(name: str, instruction: str) -> str:
    """The instruction that counts: the last of the stage and what it stands on."""
    return [rest for stage in lineage(name) for rest in stage.all(instruction)][-1]


def variables(name: str) -> dict[str, str]:
    """The environment that the image gives."""
    joined = " ".join(rest for stage in lineage(name) for rest in stage.all("ENV"))
    return dict(re.findall(r"(\w+)=(\S+)", joined))


def entrypoint(name: str) -> list[str]:
    """The command that the image starts."""
    command: list[str] = json.loads(last(name, "ENTRYPOINT"))
    return command


def lay_out(name: str, root: Path) -> None:
    """Copies below `root` what the stage's COPY lines copy of this repository, at its place."""
    for stage in lineage(name):
        for copy in stage.all("COPY"):
            *sources, target = copy.split()
            if sources[0].startswith("--from="):
                source = STAGES[sources[0].removeprefix("--from=")]
                if target == "/app":
                    lay_out(source.name, root)
                continue
            for text in sources:
                _copy(ROOT / text, root / target.lstrip("/"), folder=target.endswith("/"))


def _copy(source: Path, target: Path, *, folder: bool) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        target = target / source.name if folder else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
