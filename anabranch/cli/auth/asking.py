"""What a command asks a person: whether it is really meant, and for a credential.

Questions go to stderr, so that stdout stays what was asked for. Nothing is read from arguments:
other users of a machine see those.
"""

from __future__ import annotations

import sys
from typing import TextIO

import click

from anabranch.cli.connection import EXIT_INTERRUPTED, EXIT_REFUSED

MAX_CREDENTIAL = 16 * 1024
"""Characters. Tokens are below 4 KiB; more is some other file."""


def confirm(what_happens: str, *, yes: bool) -> None:
    """Goes on only if a person agrees, or has agreed with --yes.

    Raises click.UsageError where nobody can be asked; ends the program when the answer is no.
    """
    if yes:
        return
    if not interactive():
        raise click.UsageError(f"{what_happens} Nobody can be asked here: repeat it with --yes.")
    try:
        agreed = click.confirm(f"{what_happens} Go on?", default=False, err=True)
    except click.Abort:
        click.echo("interrupted", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    if not agreed:
        click.echo("Nothing was changed.", err=True)
        raise SystemExit(EXIT_REFUSED)


def read_credential(file: TextIO, what: str) -> str:
    """The one credential in a file or on stdin; asked for, unseen, where stdin is a terminal.

    Raises click.UsageError when there is none, or more than one. Never quotes it.
    """
    try:
        if file.isatty():
            text = str(click.prompt(what, hide_input=True, err=True))
        else:
            text = file.read(MAX_CREDENTIAL + 1)
    except UnicodeDecodeError:
        raise click.UsageError(f"that is no {what}: it is not text") from None
    except click.Abort:
        click.echo("interrupted", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    text = text.strip()
    if not text:
        raise click.UsageError(f"give a {what} in a file, or pipe one in")
    if len(text) > MAX_CREDENTIAL or len(text.split()) > 1:
        raise click.UsageError(f"that is not one {what}: there is more in it")
    return text


def interactive() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()
