"""Puts a Consul binary at .tools/bin/consul for tests and the demo, leaving the system alone.

A `consul` on PATH wins. Otherwise, on Debian for amd64, Debian 11 ("bullseye") has Consul
1.8.7: this fetches it with apt's own tools from the mirror that the machine's apt sources
already name, in an apt root of its own, so that signatures and checksums are verified, and
unpacks it with dpkg-deb. It needs no root. It does not install a service, and production
uses HashiCorp's current image instead.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = "bullseye"
VERSION = "1.8.7+dfsg1-2"
INSTEAD = (
    "Install Consul yourself (https://developer.hashicorp.com/consul/install), put the `consul` "
    "binary on PATH, and run the same command again."
)


class CannotInstall(Exception):
    """Says in one sentence why there is no Consul, for the reader of the terminal."""


@dataclass(frozen=True)
class Source:
    """One archive that the machine's apt trusts."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str = ""


def _one_line(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        match = re.match(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", raw)
        if match:
            options = dict(
                part.split("=", 1) for part in (match["options"] or "").split() if "=" in part
            )
            yield Source(match["uri"], (match["suite"],), options.get("signed-by", ""))


def _deb822(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            yield Source(uri, tuple(fields.get("suites", "").split()), fields.get("signed-by", ""))


def sources(files: Mapping[str, str]) -> Iterator[Source]:
    """The archives named by apt source files, given as name → text."""
    for name, text in files.items():
        if name.endswith(".sources"):
            yield from _deb822(text)
        elif name.endswith(".list"):
            yield from _one_line(text)


def mirror_of(found: Iterable[Source], codename: str) -> Source:
    """The archive that serves the machine's own release: it serves the older one too.

    Raises CannotInstall when no source names that release.
    """
    for source in found:
        if codename in source.suites and not re.search(r"security|updates|backports", source.uri):
            return source
    raise CannotInstall(f"apt's sources name no archive for {codename}.")


def machine_sources() -> dict[str, str]:
    """The machine's own apt source files, as name → text."""
    folder = Path("/etc/apt")
    paths = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    return {
        str(path): path.read_text(encoding="utf-8", errors="replace")
        for path in paths
        if path.is_file() and path.suffix in (".list", ".sources")
    }


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {
        key: value.strip('"')
        for key, value in (line.split("=", 1) for line in text.splitlines() if "=" in line)
    }


def _call(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, check=False, capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"{command[0]} did not run: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise CannotInstall(f"`{command[0]} {command[-1]}` failed:\n{tail}\n")
    return done.stdout


def fetch(target: Path, mirror: str = "") -> None:
    """Puts the binary at `target`. Raises CannotInstall, leaving no half-made file."""
    release = _os_release()
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotInstall(f"This is not Debian ({tool} is missing).")
    if _call(["dpkg", "--print-architecture"]).strip() != "amd64":
        raise CannotInstall("Debian's Consul package is for amd64 alone.")
    if release.get("ID") != "debian" and not mirror:
        raise CannotInstall(f"This is {release.get('ID', 'an unknown system')}, not Debian.")
    source = (
        Source(mirror, ())
        if mirror
        else mirror_of(sources(machine_sources()), release.get("VERSION_CODENAME", ""))
    )
    with tempfile.TemporaryDirectory(prefix="anabranch-apt-") as scratch:
        package = _download(Path(scratch), source)
        tree = Path(scratch, "tree")
        _call(["dpkg-deb", "--extract", str(package), str(tree)])
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_suffix(".part")
        shutil.copy2(tree / "usr/bin/consul", half)
        half.chmod(0o755)
        half.replace(target)


def _download(scratch: Path, source: Source) -> Path:
    for folder in ("lists/partial", "cache/archives/partial", "download"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    signed = f"[signed-by={source.signed_by}] " if source.signed_by.startswith("/") else ""
    (scratch / "sources.list").write_text(
        f"deb {signed}{source.uri} {SUITE} main\n", encoding="utf-8"
    )
    private = {
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": scratch,
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": "amd64",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Update::Error-Mode": "any",
        "Acquire::Retries": "5",
    }
    if os.geteuid() == 0:
        # apt's own unprivileged user cannot enter a folder that only root may enter.
        private["APT::Sandbox::User"] = "root"
    options = [word for key, value in private.items() for word in ("-o", f"{key}={value}")]
    _call(["apt-get", *options, "-qq", "update"])
    _call(["apt-get", *options, "-qq", "download", f"consul={VERSION}*"], cwd=scratch / "download")
    packages = list((scratch / "download").glob("consul_*.deb"))
    if len(packages) != 1:
        raise CannotInstall(f"{source.uri} has no consul {VERSION} in {SUITE}.")
    return packages[0]


def main(arguments: list[str] | None = None) -> int:
    """Prints the path of the Consul to use; 1 with a reason when there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=ROOT / ".tools/bin/consul")
    parser.add_argument("--mirror", default="", help="a Debian archive, instead of apt's own")
    options = parser.parse_args(arguments)
    on_path = shutil.which("consul")
    if on_path is None and not options.target.exists():
        try:
            fetch(options.target, options.mirror)
        except CannotInstall as reason:
            print(f"No Consul: {reason} {INSTEAD}", file=sys.stderr)
            return 1
    print(on_path or options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
