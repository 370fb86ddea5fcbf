"""Generates callers' stubs with the plugins of this machine, as examples/*/buf.gen.yaml say.

    python -m tools.local_stubs             every language whose plugins are here
    python -m tools.local_stubs cpp java    these

It installs no plugin: `make examples-tools` does. buf.gen.yaml, the template of `make stubs`, is
for whoever has a network instead.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tools.protos import ROOT, ContractProblem, buf, deps, same

TEMPLATES = {path.parent.name: path for path in sorted(ROOT.glob("examples/*/buf.gen.yaml"))}
"""Language → its template."""


def missing(language: str) -> list[str]:
    """The programs that a language's stubs need and this machine lacks."""
    text = TEMPLATES[language].read_text("utf-8")
    programs = re.findall(r"^ *- local: (\S+)", text, re.MULTILINE)
    if "protoc_builtin:" in text:
        programs.append("protoc")
    # What has a folder in its name is one of the repository's own.
    paths = {program: str(ROOT / program) if "/" in program else program for program in programs}
    return [program for program, path in paths.items() if not shutil.which(path)]


def generate(language: str) -> int:
    """Writes the stubs that have changed, so that only those are compiled again; how many.

    Stubs of protos that are gone are removed. Raises ContractProblem.
    """
    if lacking := missing(language):
        raise ContractProblem(f"{', '.join(lacking)} is missing: run `make examples-tools`")
    outs = set(re.findall(r"^ *out: (\S+)", TEMPLATES[language].read_text("utf-8"), re.MULTILINE))
    changed = 0
    with tempfile.TemporaryDirectory() as scratch:
        buf("generate", "--template", str(TEMPLATES[language]), "--output", scratch)
        for out in outs:
            fresh = _files(Path(scratch, out))
            for name in _files(ROOT / out) - fresh:
                (ROOT / out / name).unlink()
            for name in fresh:
                source, target = Path(scratch, out, name), ROOT / out / name
                if not same(source, target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                    changed += 1
    return changed


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def main(arguments: list[str] | None = None) -> int:
    """Generates, one line a language; 1 when a language that was asked for fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("languages", nargs="*", metavar="language", help=", ".join(TEMPLATES))
    asked = parser.parse_args(arguments).languages
    if unknown := set(asked) - set(TEMPLATES):
        parser.error(
            f"no template for {', '.join(sorted(unknown))}; there is {', '.join(TEMPLATES)}"
        )
    deps()
    failed = False
    for language in asked or TEMPLATES:
        if not asked and (lacking := missing(language)):
            print(f"{language}: left out, {', '.join(lacking)} is missing (make examples-tools)")
            continue
        try:
            print(f"{language}: {generate(language)} files have changed")
        except ContractProblem as problem:
            print(f"{language}: {problem}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
