"""Generates the Python stubs and the protoset, and checks the contracts.

    python -m tools.protos generate   stubs and protoset into anabranch/v1
    python -m tools.protos check      fails when the committed ones differ from a fresh run
    python -m tools.protos lint       buf lint, and an access rule on every RPC
    python -m tools.protos breaking   buf breaking against the merge base with main
    python -m tools.protos deps       copies what buf needs besides protos/ into .build/protos

It does not decide the rules: buf.yaml does. The protoset keeps the comments, which the
official runtimes strip from descriptors; reflection serves it.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = "anabranch/v1"
PROTOSET = f"{PACKAGE}/anabranch.protoset"
BUILD = ROOT / ".build"
IMPORTED = ("google/rpc/status.proto", "google/rpc/error_details.proto")
"""Of googleapis-common-protos: what the contracts import, and what the details of errors are."""


class ContractProblem(Exception):
    """A check failed; the text says what and where."""


def _googleapis() -> Path:
    """Where googleapis-common-protos keeps its .proto files."""
    spec = importlib.util.find_spec("google.rpc")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if Path(location, "status.proto").exists():
            return Path(location).parent.parent
    raise ContractProblem("googleapis-common-protos is not installed.")


def _pinned_generator() -> str:
    found = re.search(
        r"^grpcio-tools==(\S+)", (ROOT / "requirements/dev.txt").read_text("utf-8"), re.MULTILINE
    )
    if not found:
        raise ContractProblem("requirements/dev.txt does not pin grpcio-tools.")
    return found[1]


def _generate_into(folder: Path) -> None:
    installed, pinned = metadata.version("grpcio-tools"), _pinned_generator()
    if installed != pinned:
        raise ContractProblem(
            f"grpcio-tools {installed} is installed, {pinned} is pinned: run `make setup`."
        )
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    protoset = folder / PROTOSET
    protoset.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTOS}",
            f"-I{_googleapis()}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            f"--grpc_python_out={folder}",
            f"--descriptor_set_out={protoset}",
            "--include_imports",
            "--include_source_info",
            *sources,
        ],
        cwd=PROTOS,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ContractProblem(done.stderr.strip())
    if done.stderr.strip():
        print(done.stderr.strip(), file=sys.stderr)


def _generated(folder: Path) -> set[str]:
    """Names of the generated files below a root."""
    return {
        str(path.relative_to(folder))
        for path in (folder / PACKAGE).glob("*")
        if re.search(r"(_pb2\.pyi?|_pb2_grpc\.py|\.protoset)$", path.name)
    }


def generate() -> None:
    """Writes the stubs and the protoset; removes stubs whose .proto is gone."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        _generate_into(fresh)
        names = _generated(fresh)
        for stale in _generated(ROOT) - names:
            (ROOT / stale).unlink()
        for name in sorted(names):
            if not same(fresh / name, ROOT / name):
                shutil.copyfile(fresh / name, ROOT / name)
                print(f"wrote {name}")


def same(one: Path, other: Path) -> bool:
    """Whether both files are there, with the same bytes."""
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


def check() -> None:
    """Raises ContractProblem naming each committed file that a fresh run would change."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        _generate_into(fresh)
        names = _generated(fresh) | _generated(ROOT)
        differing = [name for name in sorted(names) if not same(fresh / name, ROOT / name)]
    if differing:
        raise ContractProblem(
            "these differ from what the contracts generate; run `make protos`:\n  "
            + "\n  ".join(differing)
        )


def deps(folder: Path = BUILD / "protos") -> None:
    """Copies the imported .proto files, for buf alone: they are never committed."""
    for name in IMPORTED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = _googleapis() / name
        if not same(source, target):
            shutil.copyfile(source, target)


def buf(*arguments: str, cwd: Path = ROOT) -> None:
    """Runs buf, with its cache below .build. Raises ContractProblem with what it says."""
    beside = Path(sys.executable).with_name("buf")
    cache = {"BUF_CACHE_DIR": str(BUILD / "buf-cache")}
    done = subprocess.run(
        [str(beside) if beside.exists() else "buf", *arguments],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **cache},
    )
    if done.returncode != 0:
        raise ContractProblem(f"buf {arguments[0]}:\n{(done.stdout + done.stderr).strip()}")


def _without_access(protoset: bytes) -> Iterator[str]:
    """RPCs of our own package whose access rule is missing or contradicts itself."""
    # Imported here because the stubs are absent before the first `generate`, and before the
    # parse because an extension that is not registered yet stays an unknown field.
    from anabranch.v1 import options_pb2

    access: Any = options_pb2.access  # protoc's .pyi gives an extension no usable type
    files = descriptor_pb2.FileDescriptorSet.FromString(protoset).file
    ours = [file for file in files if file.name.startswith(PACKAGE)]
    asking = {
        f".{file.package}.{message.name}"
        for file in ours
        for message in file.message_type
        if message.name.endswith("Request") and any(f.name == "model" for f in message.field)
    }
    for file in ours:
        for service in file.service:
            for method in service.method:
                name = f"{file.package}.{service.name}.{method.name}"
                if not method.options.HasExtension(access):
                    yield f"{name} has no (access) option"
                    continue
                rule = method.options.Extensions[access]
                if rule.public and (rule.any_scope or rule.own_tenant_scope):
                    yield f"{name} is public and names scopes"
                if rule.own_tenant_scope and not rule.any_scope:
                    yield f"{name} opens for a tenant's own, and for nobody else: name a scope"
                if method.input_type in asking and not rule.model_bound:
                    yield f"{name} names a model and is not model_bound"


def lint() -> None:
    """Runs buf lint and checks that every RPC says who may call it."""
    deps()
    buf("lint")
    with tempfile.TemporaryDirectory() as scratch:
        _generate_into(Path(scratch))
        problems = list(_without_access(Path(scratch, PROTOSET).read_bytes()))
    if problems:
        raise ContractProblem("\n".join(problems))


def _git(*arguments: str) -> str:
    """The output of a git command, empty when it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def base_commit() -> str:
    """What the contracts must stay compatible with: where this branch left main.

    On main itself that is the commit before. Empty when there is none (a shallow or new
    clone).
    """
    head = _git("rev-parse", "HEAD")
    for branch in ("origin/main", "main"):
        base = _git("merge-base", "HEAD", branch)
        if base and base != head:
            return base
    return _git("rev-parse", "--verify", "--quiet", "HEAD~1")


def breaking() -> None:
    """Runs buf breaking (rule set FILE) against the base commit; says so when there is none."""
    base = base_commit()
    if not base or not _git("ls-tree", "-d", base, "protos"):
        print("no earlier contracts to compare with: breaking changes were not checked")
        return
    deps()
    before = BUILD / "breaking"
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", base, "protos"], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x"], cwd=before, input=archive.stdout, check=True)
    shutil.copyfile(ROOT / "buf.yaml", before / "buf.yaml")
    deps(before / ".build/protos")
    buf("breaking", "--against", str(before))
    print(f"no breaking change since {base[:12]}")


COMMANDS = {
    "generate": generate,
    "check": check,
    "lint": lint,
    "breaking": breaking,
    "deps": deps,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the named commands in turn; 1 at the first that finds a problem."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="+", choices=sorted(COMMANDS), metavar="command")
    for name in parser.parse_args(arguments).commands:
        try:
            COMMANDS[name]()
        except ContractProblem as problem:
            print(f"protos {name}: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
