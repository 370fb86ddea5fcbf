"""What several commands about the auth service take: types of values, and shared options."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from anabranch.cli.auth import times

F = TypeVar("F", bound=Callable[..., Any])

SCOPES = {
    "generate": "asks models",
    "relay": "speaks for others' requests; services alone have it",
    "observe": "looks at the router",
    "audit": "reads the audit trail",
    "tenant-admin": "looks after the clients and keys of its own tenant",
    "admin": "everything that is administration",
}
"""The scopes of the contract, and what they are for."""

_INT64 = 2**63 - 1


class ScopeType(click.ParamType):  # type: ignore[type-arg]
    """A scope. One that this version does not know is left for the service to judge, unless it
    looks like a slip of the keyboard."""

    name = "scope"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The scope as typed."""
        text = str(value)
        if text not in SCOPES and (near := difflib.get_close_matches(text, SCOPES, 1)):
            self.fail(f"{text!r} is no scope. Did you mean {near[0]!r}?", param, ctx)
        return text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The scopes that begin so."""
        return [
            CompletionItem(scope, help=meaning)
            for scope, meaning in SCOPES.items()
            if scope.startswith(incomplete)
        ]


class HintingChoice(click.Choice[str]):
    """A choice that, for a word that is none, says which it looks like."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The chosen word."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            near = difflib.get_close_matches(str(value).lower(), map(str, self.choices), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            self.fail(error.message + hint, param, ctx)


class DurationType(click.ParamType):  # type: ignore[type-arg]
    """A duration in whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        try:
            return times.parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TimeType(click.ParamType):  # type: ignore[type-arg]
    """A moment, also as how long ago."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """A moment with a zone."""
        try:
            return times.parse_time(str(value), lambda: datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class CountType(click.ParamType):  # type: ignore[type-arg]
    """A positive number that the wire can carry."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if not 1 <= number <= _INT64:
            self.fail(f"{value!r} is not from 1 to {_INT64}", param, ctx)
        return number


class MicrodollarType(click.ParamType):  # type: ignore[type-arg]
    """An amount of US dollars, exact to a millionth."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Millionths of a dollar."""
        if isinstance(value, int):
            return value
        text = str(value).strip().removeprefix("$")
        try:
            amount = Decimal(text) * 1_000_000
            whole = amount.to_integral_value()
        except ArithmeticError:
            self.fail(f"{value!r} is no amount of dollars: write 12.50", param, ctx)
        if not amount.is_finite() or not 1 <= amount <= _INT64:
            self.fail(f"{value!r} is not a positive amount of dollars", param, ctx)
        if amount != whole:
            self.fail(f"{value!r} is finer than a millionth of a dollar", param, ctx)
        return int(whole)


COUNT, DURATION, SCOPE, TIME = CountType(), DurationType(), ScopeType(), TimeType()

yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")

all_option = click.option(
    "--all", "every_page", is_flag=True, help="Every page, not only the first hundred."
)

secret_file_option = click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the secret there, readable by you alone, instead of printing it.",
)

credential_argument = click.argument(
    "file", type=click.File(encoding="utf-8"), default="-", metavar="[FILE]"
)


def _combined(*options: Callable[[F], F]) -> Callable[[F], F]:
    def give(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def access_options(scope_help: str) -> Callable[[F], F]:
    """--scope and --model, repeatable."""
    return _combined(
        click.option(
            "-s", "--scope", "scopes", multiple=True, type=SCOPE, metavar="SCOPE", help=scope_help
        ),
        click.option(
            "-m",
            "--model",
            "models",
            multiple=True,
            metavar="PATTERN",
            help="A model that may be asked: a name, or a beginning and '*'; repeatable.",
        ),
    )


client_options = _combined(
    click.option(
        "-r", "--role", "roles", multiple=True, metavar="ROLE", help="A role; repeatable."
    ),
    click.option(
        "--cidr",
        "cidrs",
        multiple=True,
        metavar="NETWORK",
        help="A network that it may call from, such as 10.0.0.0/8; repeatable.",
    ),
    click.option(
        "--token-life",
        type=DURATION,
        metavar="DURATION",
        help="How long its tokens live, such as 5m; ten minutes at most.",
    ),
)
