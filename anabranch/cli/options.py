"""Command-line options that describe a request, and what they become."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from anabranch.request import RequestOptions
from anabranch.sync import Client
from anabranch.vocabulary import Priority, ReasoningEffort, Residency

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")

_REQUEST = (
    click.option("-m", "--model", help="Model name; may be left out where only one is served."),
    click.option("-s", "--system", metavar="TEXT", help="Instructions to the model."),
    click.option("--max-tokens", type=int, help="Tokens to generate at most."),
    click.option("--temperature", type=float, help="0 (greedy) to 2."),
    click.option("--top-p", type=float, help="Above 0, to 1."),
    click.option("--seed", type=int, help="Makes sampling repeatable on one backend."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer; repeatable."),
    click.option("--reasoning", type=click.Choice(ReasoningEffort.names()), help="How much."),
    click.option(
        "--residency",
        type=click.Choice(Residency.names()),
        help="Where it may run; local-only never leaves the organisation.",
    ),
    click.option("--priority", type=click.Choice(Priority.names()), help="Who goes first."),
    click.option("--ttft-slo", type=float, metavar="SECONDS", help="Longest wait for a token."),
    click.option("--max-cost", type=int, metavar="MICROUSD", help="Most that a cloud may charge."),
    click.option("--backend", metavar="ID", help="Only this backend."),
    click.option("--request-id", metavar="ID", help="Makes a repeat recognisable."),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="For accounting; repeatable."),
)


def request_options(command: F) -> F:
    """Gives a command the options that describe a request."""
    for option in reversed(_REQUEST):
        command = option(command)
    return command


def request_arguments(client: Client, **given: Any) -> RequestOptions:
    """Turns parsed options into the keywords of a client's methods.

    Raises click.UsageError when no model is named and not exactly one is served.
    """
    labels: list[str] = given.pop("label")
    if bad := [label for label in labels if "=" not in label]:
        raise click.UsageError(f"--label takes KEY=VALUE, not {bad[0]!r}")
    given["labels"] = dict(label.split("=", 1) for label in labels)
    given["backend_id"] = given.pop("backend")
    given["max_cost_microusd"] = given.pop("max_cost")
    given["model"] = given["model"] or only_model(client)
    given.pop("system")
    return {k: v for k, v in given.items() if v not in (None, "", (), {})}  # type: ignore[return-value]


def only_model(client: Client) -> str:
    """The one model that is served. Raises click.UsageError when there is a choice to make."""
    names = [model.name for model in client.models()]
    if len(names) == 1:
        return names[0]
    if not names:
        raise click.UsageError("no model is served at the moment; see `anabranch backends`")
    raise click.UsageError(f"name a model with --model: {', '.join(names[:20])}")


def conversation(system: str | None, text: str) -> list[dict[str, str]]:
    """A conversation that begins with `text`."""
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": text}]


def given_or_stdin(text: str | None) -> str:
    """The argument, or all of stdin for `-` or none. Raises click.UsageError when empty."""
    if text in (None, "-"):
        if sys.stdin.isatty() and text is None:
            raise click.UsageError("give a PROMPT, or pipe one in")
        text = sys.stdin.read()
    if not text or not text.strip():
        raise click.UsageError("the prompt is empty")
    return text
