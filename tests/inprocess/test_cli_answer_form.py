"""Forms of answers and tools on the command line, as a real server is told of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inprocess.test_client_cli import run
from tests.support.session_server import server_process

SCHEMA = {"type": "object", "properties": {"river": {"type": "string"}}}
TOOLS = [
    {"name": "weather", "description": "Now.", "parameters": {"type": "object"}},
    {"name": "now"},
]


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    with server_process() as (address, _):
        yield address


def told(remote: str, *options: str) -> dict[str, object]:
    result = run(remote, "generate", "repeat", "-m", "m", "--json", *options)
    assert result.exit_code == 0, result.stderr
    said: dict[str, object] = json.loads(json.loads(result.stdout)["choices"][0]["text"])
    return said


def file(folder: Path, content: object) -> str:
    made = folder / "file"
    made.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(made)


def test_each_form_reaches_the_model(remote: str, tmp_path: Path) -> None:
    assert told(remote) == {}
    assert told(remote, "--json-object") == {"responseFormat": {"jsonObject": {}}}
    assert told(remote, "--regex", "[a-z]+") == {"responseFormat": {"regex": "[a-z]+"}}
    choices = told(remote, "--choice", "yes", "--choice", "no")
    assert choices == {"responseFormat": {"choice": {"options": ["yes", "no"]}}}
    grammar = 'root ::= "a"\n'
    found = told(remote, "--grammar", file(tmp_path, grammar))
    assert found == {"responseFormat": {"grammar": grammar}}
    found = told(remote, "--json-schema", file(tmp_path, SCHEMA))
    assert json.loads(found["responseFormat"]["jsonSchema"]) == SCHEMA  # type: ignore[index]


def test_tools_reach_the_model_and_its_calls_are_printed(remote: str, tmp_path: Path) -> None:
    tools = ("--tools", file(tmp_path, TOOLS))
    found = told(remote, *tools, "--tool-choice", "required")
    assert [tool["name"] for tool in found["tools"]] == ["weather", "now"]  # type: ignore[attr-defined]
    assert found["toolChoice"] == {"mode": "MODE_REQUIRED"}
    named = told(remote, *tools, "--tool-choice", "weather")
    assert named["toolChoice"] == {"mode": "MODE_REQUIRED", "name": "weather"}
    result = run(remote, "generate", "repeat", "-m", "m", *tools)
    assert result.stdout.splitlines()[-2:] == ['weather {"a": 1}', 'now {"a": 1}']


@pytest.mark.parametrize(
    ("content", "options", "word"),
    [
        ("", ("--regex", "a", "--json-object"), "--json-object and --regex exclude each other"),
        ("{", ("--json-schema", "FILE"), "is no JSON"),
        ("{", ("--tools", "FILE"), "is no JSON"),
        ("[7]", ("--tools", "FILE"), "is no list of tools, such as"),
        ('[{"title": "x"}]', ("--tools", "FILE"), "a tool has no 'title'"),
        ("", ("--tool-choice", "auto"), "--tools, which are missing"),
        ("", ("--grammar", "no such file"), "does not exist"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_is_sent(
    remote: str, tmp_path: Path, content: str, options: tuple[str, ...], word: str
) -> None:
    path = file(tmp_path, content)
    result = run(remote, "generate", "x", "-m", "m", *(path if o == "FILE" else o for o in options))
    assert result.exit_code == 2
    assert word in " ".join(result.stderr.split())
