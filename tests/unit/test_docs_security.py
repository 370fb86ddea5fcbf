"""The pages about security name only what exists: tests, settings, commands, links and files."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
import pytest

from anabranch.cli import main
from anabranch.v1 import auth_pb2, errors_pb2, generation_pb2
from services.chassis.audit.command import audit
from services.chassis.common_settings import CommonSettings
from services.chassis.encryption.command import keychain

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "SECURITY.md",
    ROOT / "docs/security.md",
    *sorted((ROOT / "docs/security").glob("*.md")),
    *sorted((ROOT / "docs/adr").glob("00[01][0-9]-*.md"))[8:],
]
SERVICES = {
    "ROUTER": "services.router",
    "ENGINE": "services.local_engine",
    "CLOUD": "services.cloud_proxy",
    "AUTH": "services.auth",
}
FURTHER: dict[str, click.Command] = {"audit": audit, "keychain": keychain}
"""Commands that are found through entry points, whether those are installed or not."""
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def settings(package: str) -> set[str]:
    module = importlib.import_module(f"{package}.settings")
    return {name.upper() for name in module.Settings.__dataclass_fields__}


@functools.cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    # Of a state machine the test is a name in the module.
    machines = (
        target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    )
    return frozenset(found | {name.id for name in machines if isinstance(name, ast.Name)})


def code(page: Path) -> Iterator[str]:
    """What the page shows as code, in blocks and within lines; a continued line is one."""
    prose = text(page).replace("\\\n", " ")
    for block in re.findall(r"```(?:sh)?\n(.*?)```", prose, re.DOTALL):
        yield from block.splitlines()
    prose = re.sub(r"```.*?```", "", prose, flags=re.DOTALL)
    yield from re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", prose)


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_test_that_the_pages_name_exists() -> None:
    named = {
        (path, name)
        for page in PAGES
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text(page))
    }
    assert len(named) > 60
    for path, name in sorted(named):
        assert (ROOT / path).is_file(), path
        assert name in functions(path), f"{path}::{name}"


def test_every_promise_names_a_test() -> None:
    promises = text(ROOT / "docs/security.md").partition("\n## Promises")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row != "| promise | held by |"]
    assert len(rows) > 40
    for row in rows:
        assert "::test_" in row or "::Test" in row, row


@every_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"`((?:tests|services|tools|deploy|requirements)/[\w./-]+)", text(page)):
        assert (ROOT / path).exists(), path


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if path == "../../security/advisories/new":
            continue  # GitHub's own form, beside the files
        assert there.exists(), target
        assert not anchor or anchor in headings(there), target


@every_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    for service, name in re.findall(r"ANABRANCH_(ROUTER|ENGINE|CLOUD|AUTH)_(\w+)", text(page)):
        if (service, name) == ("AUTH", "TARGET"):
            continue  # the client library's
        known = settings(SERVICES[service])
        assert name in known or name.removesuffix("_FILE") in known, f"ANABRANCH_{service}_{name}"


@every_page
def test_every_variable_of_the_client_that_a_page_names_is_read_there(page: Path) -> None:
    read = "".join(text(file) for file in (ROOT / "anabranch").glob("*.py"))
    read += "".join(text(file) for file in (ROOT / "anabranch/cli").glob("*.py"))
    for name in re.findall(r"ANABRANCH_(?!ROUTER|ENGINE|CLOUD|AUTH_(?!TARGET))\w+", text(page)):
        assert name in read or name.removesuffix("_FILE") in read, name


@every_page
def test_every_name_in_capitals_is_a_setting_a_status_or_a_value(page: Path) -> None:
    known = {name.upper() for name in CommonSettings.__dataclass_fields__}
    known |= set.union(*(settings(package) for package in SERVICES.values()))
    known |= {code.name for code in grpc.StatusCode}
    known |= {
        name.removeprefix("ERROR_REASON_")
        for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
    }
    for kind, prefix in (
        (generation_pb2.Residency, "RESIDENCY_"),
        (auth_pb2.AuditDetail, "AUDIT_DETAIL_"),
    ):
        known |= {name.removeprefix(prefix) for name in kind.DESCRIPTOR.values_by_name}
    known |= {"CERTS", "SCANNER", "FROM", "DETAILS"}
    known |= {"PGSSLROOTCERT"}  # PostgreSQL's own
    for name in re.findall(r"`((?!ANABRANCH_)[A-Z][A-Z_]{3,})(?:=[^`]*)?`", text(page)):
        assert name in known, name


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words call, and the words behind its name."""
    found: click.Command = main
    while words and isinstance(found, click.Group):
        following = FURTHER.get(words[0]) if found is main else None
        following = following or found.get_command(click.Context(found), words[0])
        assert following is not None, words
        found, words = following, words[1:]
    return found, words


@every_page
def test_every_command_that_a_page_shows_exists_with_its_options(page: Path) -> None:
    for line in code(page):
        for part in re.split(r"\s\|\s|\s#\s|&&", line):
            if not re.match(r"anabranch (?!data key)[a-z]", part) or "…" in part:
                continue
            command, rest = resolved(shlex.split(part)[1:])
            options = {name for option in command.params for name in option.opts}
            for word in rest:
                assert not word.startswith("--") or word.split("=")[0] in options, part
