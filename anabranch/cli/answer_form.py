"""Command-line options that say what form an answer has and which tools it may call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from anabranch.request import RequestOptions, build_request

F = TypeVar("F", bound=Callable[..., Any])

_file = click.Path(exists=True, dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option("--json-object", is_flag=True, help="The answer is one JSON object."),
    click.option(
        "--json-schema", type=_file, metavar="FILE", help="The answer is JSON of this schema."
    ),
    click.option("--regex", metavar="PATTERN", help="The answer matches this, from end to end."),
    click.option("--choice", multiple=True, metavar="TEXT", help="One of these; repeatable."),
    click.option("--grammar", type=_file, metavar="FILE", help="The answer is of this EBNF."),
    click.option(
        "--tools",
        type=_file,
        metavar="FILE",
        help="Tools that it may call: a JSON list of name, description and parameters.",
    ),
    click.option(
        "--tool-choice", metavar="HOW", help="auto, none, required, or the one tool to call."
    ),
)
_FORMS = ("json_object", "json_schema", "regex", "choice", "grammar")


def form_options(command: F) -> F:
    """Gives a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def form_arguments(given: dict[str, Any]) -> RequestOptions:
    """Takes the parsed options out of `given`; the keywords of a client's methods.

    Raises click.UsageError for two forms at once and for files that hold something else.
    """
    forms = {name: given.pop(name) for name in _FORMS}
    forms = {name: value for name, value in forms.items() if value}
    tools, choice = given.pop("tools"), given.pop("tool_choice")
    if len(forms) > 1:
        named = " and ".join("--" + name.replace("_", "-") for name in forms)
        raise click.UsageError(f"{named} exclude each other: an answer has one form")
    found: RequestOptions = {}
    for name, value in forms.items():
        found["response_format"] = name if value is True else {name: _read(name, value)}
    if tools is not None:
        found["tools"] = _tools(tools)
    if choice:
        if tools is None:
            raise click.UsageError("--tool-choice chooses among --tools, which are missing")
        found["tool_choice"] = choice
    return found


def _read(name: str, value: Any) -> Any:
    if not isinstance(value, Path):
        return list(value) if name == "choice" else value
    return _json(value) if name == "json_schema" else _text(value)


def _tools(file: Path) -> Any:
    tools = _json(file)
    try:
        build_request(tools=tools)
    except (TypeError, ValueError) as wrong:
        raise click.UsageError(
            f"{file} is no list of tools, such as "
            f'[{{"name": "now", "description": "The time.", "parameters": {{}}}}]: {wrong}'
        ) from None
    return tools


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as wrong:
        raise click.UsageError(f"{file} is no JSON: {wrong}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise click.UsageError(f"{file} cannot be read: {wrong}") from None
