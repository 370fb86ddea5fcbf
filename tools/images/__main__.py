"""Builds the images with buildah and runs them with podman: python -m tools.images [TARGET…]

For a Debian machine without a Docker engine, as root. Where no registry can be reached Debian
itself stands in for the base image: bookworm with Python 3.11, laid out the same; --base names
another one. Layers stay in .build/images; `make clean` removes them.

Of each image it says who it runs as, how much of it is ours, and that it has neither pip nor torch
where none belongs. With router, auth, cloud-proxy and tools among the targets (the default) it then
runs these four together, read-only and without privileges, until their own health checks are
content, and asks the provider simulator through them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.cluster.recipes import ROOT
from tools.images.cluster import ImageCluster
from tools.images.engine import Engine, EngineError, Image

STAND_IN = "localhost/stand-in/python:3.11-bookworm"
LIGHT = ("router", "auth", "cloud-proxy", "tools")
TARGETS = (*LIGHT, "engine-cpu", "model")
"""engine-gpu stands on vLLM's own image and has no stand-in."""

UNWANTED = ("pip", "setuptools", "wheel", "torch", "vllm", "pytest", "mypy")
"""Python packages that a service without an engine has no use for."""

_PROBE = (
    "import importlib.util as u, json, os, sys;"
    "print(json.dumps([os.getuid(), [m for m in sys.argv[1:] if u.find_spec(m)]]))"
)


def check(engine: Engine, target: str, image: Image, base: Image) -> dict[str, object]:
    """What the built image is, as a row. Raises EngineError when it is not as it should be."""
    if image.user != "10001:10001":
        raise EngineError(f"{target} runs as {image.user or 'root'}, not as 10001:10001")
    said = engine.once(image.name, "-c", _PROBE, *UNWANTED, options=("--entrypoint", "python"))
    user, found = json.loads(said.strip().splitlines()[-1])
    if user != 10001 or (target in LIGHT and found):
        raise EngineError(f"{target} runs as {user} and has {found}")
    ours = image.size - base.size
    return {"image": target, "user": user, "bytes": image.size, "own_bytes": ours}


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; 1 with the reason when something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} ({' '.join(LIGHT)})"
    )
    parser.add_argument("--base", default="", help="the Python base image, already in the store")
    parser.add_argument(
        "--wheels", type=Path, help="a folder of wheels that pip looks in as well, such as torch's"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    targets = options.targets or list(LIGHT)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"  [{time.monotonic() - started:6.1f} s] {text}", markup=False)

    engine = Engine(ROOT / ".build/images")
    rows: list[dict[str, object]] = []
    answer = ""
    try:
        engine.prepare()
        base = options.base or STAND_IN
        if not options.base:
            say("Debian stands in for the base image")
            engine.stand_in(base)
        names = {target: f"localhost/anabranch/{target}" for target in targets}
        build_arguments = {"PYTHON_IMAGE": base, "VERSION": "check"}
        volumes = []
        if options.wheels:
            volumes = [f"{options.wheels.resolve()}:/wheels"]
            build_arguments["PIP_FIND_LINKS"] = "/wheels"
        for target, name in names.items():
            say(f"building {target}")
            dockerfile = ROOT / "deploy/docker/Dockerfile"
            engine.build(dockerfile, target, name, build_arguments, volumes)
            rows.append(check(engine, target, engine.inspect(name), engine.inspect(base)))
        if set(LIGHT) <= set(targets):
            answer = run_together(engine, names, say)
            say(f"answered: {answer.splitlines()[0]}")
    except EngineError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"images": rows, "answer": answer}, indent=2) if options.json else table(rows))
    return 0


def run_together(engine: Engine, names: dict[str, str], say: Callable[[str], None]) -> str:
    """One answer of the images together. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="anabranch-images-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the containers' user reads it
        return ImageCluster(engine, names, say).run(folder)


def table(rows: list[dict[str, object]]) -> str:
    """The rows for a person."""
    shown = Table("image", "user", "MB", "MB beside the base")
    for row in rows:
        size, own = int(str(row["bytes"])), int(str(row["own_bytes"]))
        shown.add_row(str(row["image"]), str(row["user"]), f"{size / 1e6:.0f}", f"{own / 1e6:.0f}")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


if __name__ == "__main__":
    sys.exit(main())
