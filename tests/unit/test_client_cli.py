"""The command line without a cluster: help, usage errors, environment, completion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner

from anabranch import Client
from anabranch.cli import main
from anabranch.cli.connection import exit_code
from anabranch.environment import client_arguments
from anabranch.errors import error_for


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by what is typed for it, those of groups included."""
    for name, command in group.commands.items():
        yield before + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_teaches_by_example_and_takes_json(name: str) -> None:
    command = COMMANDS[name]
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert re.search(rf"(  |\| |EDITOR=nano )anabranch {name}", result.output)
    options = {o for p in command.params for o in p.opts}
    assert "--json" in options or name == "completion" or isinstance(command, click.Group)
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert undocumented == []


def test_no_option_takes_a_secret_itself() -> None:
    options = {o for p in main.params for o in p.opts}
    assert {"--token", "--client-secret"}.isdisjoint(options)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command"),
        (["generate", "--residency", "moon", "x"], "local-only"),
        (["generate", " "], "the prompt is empty"),
        (["generate", "x", "--raw", "-s", "y"], "leave out --raw"),
        (["drain"], "Missing argument"),
        (["policy", "update"], "Missing argument"),
        (["policy", "update", "/nowhere/policy.yaml"], "No such file"),
        (["--target", "http://x", "models"], "without a scheme"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_wrong(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_version_as_text_and_json() -> None:
    assert "grpcio 1." in CliRunner().invoke(main, ["version"]).output
    assert "grpcio" in json.loads(CliRunner().invoke(main, ["version", "--json"]).output)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_ANABRANCH_COMPLETE" in result.output


def test_the_environment_fills_what_is_not_given(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    env = {"ANABRANCH_TARGET": "r:1", "ANABRANCH_TOKEN_FILE": str(token)}
    assert client_arguments(env) == {"target": "r:1", "token": "abc"}
    assert client_arguments(env, target="other:2", token=None)["target"] == "other:2"
    assert client_arguments({}) == {"target": "127.0.0.1:50051"}
    own = {"ANABRANCH_CLIENT_ID": "c", "ANABRANCH_CLIENT_SECRET": "s"}
    assert client_arguments(own, token="mine") == {"target": "127.0.0.1:50051", "token": "mine"}


@pytest.mark.parametrize(
    "env",
    [
        {"ANABRANCH_TOKEN": "a", "ANABRANCH_TOKEN_FILE": "b"},
        {"ANABRANCH_TOKEN_FILE": "/nowhere/token"},
        {"ANABRANCH_CLIENT_ID": "c"},
        {"ANABRANCH_CLIENT_ID": "c", "ANABRANCH_CLIENT_SECRET": "s"},
        {"ANABRANCH_TLS_CA_FILE": "/dev/null", "ANABRANCH_TLS_KEY_FILE": "/dev/null"},
    ],
)
def test_a_contradictory_environment_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Client.from_env(env)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("CREDENTIAL_REJECTED", 3),
        ("ACCESS_DENIED", 3),
        ("MODEL_NOT_FOUND", 4),
        ("QUOTA_EXCEEDED", 4),
        ("NO_BACKEND", 5),
        ("BACKEND_LOST", 5),
        ("OVERLOADED", 5),
        ("DEADLINE_EXCEEDED", 5),
        ("INTERNAL", 1),
    ],
)
def test_exit_codes(reason: str, code: int) -> None:
    assert exit_code(error_for(reason, "x", grpc.StatusCode.UNKNOWN)) == code
