"""Checks the rules of the rooms that import-linter cannot express.

- `core` imports the standard library and itself, and nothing in it that reaches the world.
- The environment is read where a process starts, nowhere else.
- What the services import is pinned in requirements/base.txt; what the client library imports
  is among the dependencies of the distribution.
- Every module opens with a docstring that says what it does; no file outgrows 400 lines (tests,
  which are tables of cases, 600).

It reads source text only; it does not import what it checks.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400
LONGEST_TEST = 600
"""Lines. Files near 300 are the aim; a longer one has more than one reason to change."""

WORLD = {
    *("asyncio", "concurrent", "multiprocessing", "queue", "signal", "subprocess", "threading"),
    *("http", "select", "selectors", "socket", "ssl", "urllib"),
    *("io", "logging", "os", "pathlib", "shutil", "sys", "tempfile"),
    *("ctypes", "secrets", "time"),
}
"""Parts of the standard library that a pure room has no use for: clocks, files, networks."""

ENVIRONMENT_READERS = ("anabranch/cli", "anabranch/environment.py")
"""Where the environment may be read, besides every __main__.py."""

HEAVY = {
    "services/local_engine/on_vllm/": {
        *("compressed_tensors", "jinja2", "msgspec", "numpy", "PIL", "safetensors", "torch"),
        *("transformers", "vllm", "xgrammar", "zmq"),
    },
    "anabranch/tracing.py": {"opentelemetry"},
}
"""Imports that an extra's requirements bring, by the only files or rooms that may use them."""


def _files() -> Iterator[tuple[str, ast.Module, int]]:
    for folder in ("anabranch", "services", "tools", "tests", "bench", "examples/python"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("anabranch/v1/"):
                continue
            text = path.read_text(encoding="utf-8")
            yield name, ast.parse(text, name), text.count("\n")


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full module name of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def _core_problems(name: str, tree: ast.Module) -> Iterator[str]:
    found = re.match(r"(services/\w+/core)/", name)
    if not found:
        return
    own = found[1].replace("/", ".")
    for line, module in _imports(tree):
        top = module.split(".")[0]
        if module == own or module.startswith(own + "."):
            continue
        if top not in sys.stdlib_module_names or top in WORLD:
            yield f"{name}:{line}: core imports {module}"


def _environment_problems(name: str, tree: ast.Module) -> Iterator[str]:
    if not name.startswith(("services/", "anabranch/")) or name.endswith("__main__.py"):
        return
    if name.startswith(ENVIRONMENT_READERS):
        return
    # A library that can only be told through the environment is told with `setdefault`.
    written = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "setdefault"
    }
    for node in ast.walk(tree):
        if id(node) in written:
            continue
        if isinstance(node, ast.Attribute):
            reads = node.attr in ("environ", "environb", "getenv") and (
                isinstance(node.value, ast.Name) and node.value.id == "os"
            )
        elif isinstance(node, ast.ImportFrom):
            reads = node.module == "os" and any(
                alias.name in ("environ", "getenv") for alias in node.names
            )
        else:
            continue
        if reads:
            yield f"{name}:{node.lineno}: reads the environment; take it as a setting"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _pinned() -> frozenset[str]:
    text = (ROOT / "requirements/base.txt").read_text(encoding="utf-8")
    return frozenset(_normal(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE))


@cache
def _client_dependencies() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = (re.match(r"[\w.-]+", text) for text in project["dependencies"])
    return frozenset(_normal(found[0]) for found in names if found)


def _dependency_problems(name: str, tree: ast.Module) -> Iterator[str]:
    if name.startswith("services/"):
        allowed, where = _pinned(), "requirements/base.txt"
    elif name.startswith("anabranch/"):
        allowed, where = _client_dependencies(), "the dependencies in pyproject.toml"
    else:
        return
    for line, module in _imports(tree):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in ("anabranch", "services"):
            continue
        if any(top in heavy for room, heavy in HEAVY.items() if name.startswith(room)):
            continue
        if not _distributions(module) & allowed:
            yield f"{name}:{line}: {module} is not among {where}"


def _distributions(module: str) -> frozenset[str]:
    """Which installed distributions provide a module; `google` is shared by several."""
    if module.startswith("google.protobuf"):
        return frozenset({"protobuf"})
    if module.startswith("google.rpc"):
        return frozenset({"googleapis-common-protos"})
    if module.startswith("opentelemetry.exporter."):
        kind = "prometheus" if "prometheus" in module else "otlp-proto-http"
        return frozenset({f"opentelemetry-exporter-{kind}"})
    return frozenset(_normal(name) for name in _provided().get(module.split(".")[0], ()))


@cache
def _provided() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _shape_problems(name: str, tree: ast.Module, lines: int) -> Iterator[str]:
    longest = LONGEST_TEST if name.startswith("tests/") else LONGEST
    if lines > longest:
        yield f"{name}: {lines} lines, more than {longest}: it has more than one reason"
    if tree.body and not ast.get_docstring(tree):
        yield f"{name}:1: no docstring that says what the module does"


def problems() -> Iterator[str]:
    """Every breach, as `file:line: what`."""
    for name, tree, lines in _files():
        yield from _core_problems(name, tree)
        yield from _environment_problems(name, tree)
        yield from _dependency_problems(name, tree)
        yield from _shape_problems(name, tree, lines)


def main() -> int:
    """Prints every breach; 1 when there is one."""
    found = list(problems())
    print("\n".join(found) or "the rooms are in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
