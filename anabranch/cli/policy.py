"""Commands about the router's policy: show, update and edit. Checking a file needs no cluster."""

from __future__ import annotations

from typing import TextIO

import click

from anabranch.cli.connection import Connection, exit_code
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json, print_policy, print_updated
from anabranch.errors import AnabranchError, InvalidRequestError
from anabranch.sync import Client


@click.group()
def policy() -> None:
    """Read and replace the policy by which the router decides: where requests go, what overflows
    to the cloud, what that may cost, who may do what. Needs the scope admin.

    \b
    Examples:
      anabranch policy show > policy.yaml
      anabranch policy update policy.yaml
      anabranch policy edit

    A file is checked without a cluster by `python -m services.router --check-policy FILE`, which
    names every fault at once. docs/policy.md explains every key.
    """


@policy.command()
@json_option
@click.pass_obj
def show(connection: Connection, /, as_json: bool) -> None:
    """Print the policy in force, as it was written; its version and origin go to stderr.

    A newer document that the router refused is named there too, with every fault.

    \b
    Examples:
      anabranch policy show > policy.yaml
      anabranch policy show --json | jq -r .version
    """
    with connection.client(as_json=as_json) as client:
        found = client.policy()
        print_json(found) if as_json else print_policy(found)


@policy.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option(
    "--expected-version",
    metavar="VERSION",
    default="",
    help="Replace only this version; another one means that somebody else was faster.",
)
@json_option
@click.pass_obj
def update(connection: Connection, /, file: TextIO, expected_version: str, as_json: bool) -> None:
    """Put the policy in FILE (- for stdin) in force: whole, or with any fault not at all.

    Where the router reads its policy from Consul it is written there, and every router follows.
    Otherwise it holds in this router until that restarts or its policy file changes.

    \b
    Examples:
      anabranch policy update policy.yaml
      anabranch policy update policy.yaml --expected-version 9c5a879f74af
    """
    text = _read(file)
    with connection.client(as_json=as_json) as client:
        _put(client, text, expected_version, as_json=as_json)


@policy.command()
@json_option
@click.pass_obj
def edit(connection: Connection, /, as_json: bool) -> None:
    """Open the policy in force in $EDITOR, and put in force what is saved.

    Refused when somebody else has changed it meanwhile. What was written is never lost: a text
    that was not accepted is printed.

    \b
    Example:
      EDITOR=nano anabranch policy edit
    """
    with connection.client(as_json=as_json) as client:
        before = client.policy()
        text = click.edit(before.text, extension=".yaml")
        if text is None or text == before.text:
            click.echo("Nothing changed.", err=True)
            return
        try:
            _put(client, text, before.version, as_json=as_json)
        except (AnabranchError, SystemExit, KeyboardInterrupt):
            click.echo(text, nl=not text.endswith("\n"))
            raise


def _put(client: Client, text: str, expected_version: str, *, as_json: bool) -> None:
    """Updates the policy; the faults of a bad document are listed one a line."""
    try:
        version = client.update_policy(text, expected_version=expected_version)
    except InvalidRequestError as error:
        if as_json or not error.violations:
            raise
        for fault in error.violations:
            click.secho(f"{fault.field}: {fault.description}", err=True, fg="red")
        click.echo("Nothing changed: a policy is put in force whole or not at all.", err=True)
        raise SystemExit(exit_code(error)) from None
    print_json({"version": version}) if as_json else print_updated(version)


def _read(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError:
        raise click.UsageError(f"{file.name} is not UTF-8") from None
