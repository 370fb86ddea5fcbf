"""docs/security/cli.md can be followed to the letter: its commands, in order, on one service."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from anabranch import api_keys
from anabranch.cli import main
from tests.support.auth_administration import real_service

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_KEY_ID = "4k9x0q2m7c1v8b5n"
ASKS = {"rotate-secret", "revoke", "disable", "delete"}


def commands(page: str) -> Iterator[list[str]]:
    """The arguments of each `anabranch` in a shell block; what is piped further is left out."""
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s\|\s|\s#\s", line):
                if part.startswith("anabranch "):
                    yield shlex.split(part)[1:]


def test_every_command_of_the_page_works_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/security/cli.md").read_text(encoding="utf-8")
    found = list(commands(page))
    groups = {tuple(command[:2]) for command in found}
    assert {("auth", name) for name in ("tenants", "roles", "clients", "keys", "quotas")} < groups
    with real_service(tmp_path / "auth") as service:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        env = {**clean, **service.environment}
        stdin = ""
        token = CliRunner().invoke(main, ["auth", "token", "issue"], env=env).stdout
        Path("token.txt").write_text(token)
        for command in found:
            if EXAMPLE_KEY_ID in command:
                key_id = api_keys.public_id(Path("export.key").read_text().strip())
                command = [key_id if part == EXAMPLE_KEY_ID else part for part in command]
            if ASKS & set(command):
                command = [*command, "--yes"]
            result = CliRunner().invoke(main, command, input=stdin, env=env)
            assert result.exit_code == 0, (command, result.output)
            stdin = result.stdout
