"""How a command reaches the cluster, and how its failure reads: text, JSON and exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

import click

from anabranch.auth_admin import AuthAdmin
from anabranch.environment import auth_arguments, client_arguments
from anabranch.errors import (
    AccessDeniedError,
    AnabranchError,
    AuthenticationError,
    DeadlineExceededError,
    InternalServiceError,
    OverloadedError,
    UnavailableError,
)
from anabranch.model_admin import ModelAdmin
from anabranch.sync import Client

EXIT_BUG, EXIT_CREDENTIALS, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 3, 4, 5, 130


@dataclass(frozen=True)
class Connection:
    """What the command line says about the connection; the environment fills the rest."""

    given: dict[str, Any] = field(repr=False)  # secrets among it

    @classmethod
    def from_options(cls, **options: Any) -> Connection:
        """Takes the options of the command group as click parsed them."""
        secret: TextIO | None = options.pop("client_secret_file")
        token: TextIO | None = options.pop("token_file")
        options["client_secret"] = _content(secret)
        options["token"] = _content(token)
        return cls(options)

    @contextmanager
    def client(self, *, as_json: bool = False) -> Iterator[Client]:
        """A client for one command; what fails inside ends the program readably."""
        with _readable(as_json=as_json), Client(**client_arguments(**self.given)) as client:
            yield client

    @contextmanager
    def model_admin(self, *, as_json: bool = False) -> Iterator[ModelAdmin]:
        """The same for the models of one engine."""
        with (
            _readable(as_json=as_json),
            ModelAdmin(**client_arguments(**self.given)) as engine,
        ):
            yield engine

    @contextmanager
    def auth_admin(self, *, as_json: bool = False) -> Iterator[AuthAdmin]:
        """The same for the auth service. Raises click.UsageError when none is named."""
        with _readable(as_json=as_json), AuthAdmin(**auth_arguments(**self.given)) as auth:
            yield auth


def _content(file: TextIO | None) -> str | None:
    """What is in the file of a secret. Raises click.UsageError, which quotes none of it."""
    if file is None:
        return None
    try:
        return file.read().strip()
    except UnicodeDecodeError:
        raise click.UsageError(f"{file.name} is not UTF-8") from None


@contextmanager
def _readable(*, as_json: bool) -> Iterator[None]:
    """Ends the program with one message and the right exit code for whatever fails inside."""
    try:
        yield
    except AnabranchError as error:
        report(error, as_json=as_json)
        raise SystemExit(exit_code(error)) from None
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None


def report(error: AnabranchError, *, as_json: bool) -> None:
    """Writes an error to stderr, in one or two lines or as one JSON object."""
    if as_json:
        said = {
            "reason": error.reason,
            "message": error.message,
            "code": error.code.name,
            "work": str(error.work),
            "violations": [vars(v) for v in error.violations],
            "metadata": error.metadata,
            "retry_after": error.retry_after,
            "advice": error.advice,
        }
        click.echo(json.dumps({"error": said}, ensure_ascii=False), err=True)
        return
    faults = "".join(f"; {v.field}: {v.description}" for v in error.violations)
    click.secho(f"error: {error.message}{faults} [{error.reason}]", err=True, fg="red")
    if error.advice:
        click.echo(f"  {error.advice}", err=True)


def exit_code(error: AnabranchError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, AuthenticationError | AccessDeniedError):
        return EXIT_CREDENTIALS
    if isinstance(error, UnavailableError | OverloadedError | DeadlineExceededError):
        return EXIT_UNAVAILABLE
    return EXIT_BUG if isinstance(error, InternalServiceError) else EXIT_REFUSED
