"""`anabranch keychain`: the key-encryption keys in a file, made, rotated and removed.

Works on the file alone and shows no key. Distributing it, and restarting what reads it, is the
operator's; docs/security/encryption.md has the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from anabranch.cli.connection import EXIT_REFUSED
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json, print_table
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain_document import (
    new_keychain_text,
    parse_keychain,
    with_current,
    without_key,
)
from services.chassis.private_files import put_over

_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
_ID = click.option("--id", "key_id", metavar="ID", help="The key's name. [default: today's date]")


@click.group()
def keychain() -> None:
    """Make and rotate the keys that stored secrets, prompts and answers are encrypted with.

    \b
    Examples:
      anabranch keychain new keys.json
      anabranch keychain add keys.json --id 2027-01 --not-current    every replica learns it
      anabranch keychain use keys.json 2027-01                       then it seals
      anabranch keychain remove keys.json 2026-11                    once nothing needs it
      anabranch keychain show keys.json

    Needs no cluster. Files have mode 0600; restart the services that read them, one by one.
    """


@keychain.command()
@_FILE
@_ID
def new(file: Path, key_id: str | None) -> None:
    """Make FILE with one fresh key. Refuses a FILE that is there."""
    if file.exists():
        raise click.UsageError(f"{file} is there already: `keychain add` adds a key to it")
    name = key_id or _today()
    _write(file, lambda: new_keychain_text(None, name))
    click.echo(f"{file}: the key {name} seals")


@keychain.command()
@_FILE
@_ID
@click.option("--not-current", is_flag=True, help="Only open with it, until `keychain use`.")
def add(file: Path, key_id: str | None, not_current: bool) -> None:
    """Add a fresh key to FILE, and make it the one that seals."""
    name = key_id or _today()
    _write(file, lambda: new_keychain_text(_read(file), name, make_current=not not_current))
    click.echo(f"{file}: the key {name} {'opens' if not_current else 'seals'}")


@keychain.command()
@_FILE
@click.argument("key_id", metavar="ID")
def use(file: Path, key_id: str) -> None:
    """Let the key ID of FILE seal from now on."""
    _write(file, lambda: with_current(_read(file), key_id))
    click.echo(f"{file}: the key {key_id} seals")


@keychain.command()
@_FILE
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(file: Path, key_id: str, yes: bool) -> None:
    """Remove the key ID from FILE. What is still under it can then be opened no more."""
    if not yes:
        click.confirm(f"What is still sealed under {key_id} will be lost. Remove it?", abort=True)
    _write(file, lambda: without_key(_read(file), key_id))
    click.echo(f"{file}: the key {key_id} is gone")


@keychain.command()
@_FILE
@json_option
def show(file: Path, as_json: bool) -> None:
    """Print the names of the keys in FILE, and which one seals; no key is shown."""
    try:
        document = parse_keychain(_read(file))
    except EncryptionError as refused:
        raise _fail(file, refused) from None
    if as_json:
        print_json({"current": document.current, "keys": sorted(document.keys)})
        return
    print_table(
        ("KEY", "USE"),
        [
            (name, "seals and opens" if name == document.current else "opens")
            for name in sorted(document.keys)
        ],
        "The keychain is empty.",
    )


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as unreadable:
        raise click.UsageError(f"{file} cannot be read: {unreadable.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} cannot be read: not UTF-8") from None


def _write(file: Path, changed: Callable[[], str]) -> None:
    """Puts the changed text in place whole: no crash leaves half a keychain."""
    try:
        text = changed()
    except EncryptionError as refused:
        raise _fail(file, refused) from None
    try:
        put_over(file, text.encode())
    except OSError as refused:
        raise click.UsageError(f"{file} cannot be written: {refused.strerror}") from None


def _fail(file: Path, refused: EncryptionError) -> SystemExit:
    click.secho(f"{file}: {refused}", err=True, fg="red")
    return SystemExit(EXIT_REFUSED)
