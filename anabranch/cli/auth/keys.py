"""Commands about API keys: list, create, revoke, and inspect, which connects to nothing."""

from __future__ import annotations

from typing import TextIO

import click

from anabranch import api_keys
from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm, read_credential
from anabranch.cli.auth.calls import administrator, client_names, hinting, key_names, listed
from anabranch.cli.auth.options import (
    DURATION,
    access_options,
    all_option,
    credential_argument,
    secret_file_option,
    yes_option,
)
from anabranch.cli.auth.secret_output import secret_output
from anabranch.cli.auth.times import duration
from anabranch.cli.connection import EXIT_REFUSED, Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb


@click.group()
def keys() -> None:
    """API keys: credentials for a client's programs, each of which can be revoked by itself.

    \b
    Examples:
      anabranch auth keys create --client billing --life 90d --name "nightly export"
      anabranch auth keys list --client billing
      anabranch auth keys revoke 4k9x0q2m7c1v8b5n
    """


@keys.command("list")
@click.option("-c", "--client", "client_id", metavar="ID", default="", help="Only this client's.")
@all_option
@json_option
@click.pass_obj
def list_keys(connection: Connection, /, client_id: str, every_page: bool, as_json: bool) -> None:
    """List API keys by their public ids, with when each was used last.

    \b
    Examples:
      anabranch auth keys list --client billing
      anabranch auth keys list --all --json | jq -r '.[] | select(.last_used_at == null) | .key_id'
    """
    with administrator(connection, as_json=as_json) as auth:
        request = pb.ListApiKeysRequest(client_id=client_id)
        found = listed(auth, auth.stub.ListApiKeys, request, "keys", every_page=every_page)
        print_json([views.api_key(k) for k in found]) if as_json else views.print_api_keys(found)


@keys.command()
@click.option("-c", "--client", "client_id", metavar="ID", required=True, help="Whose it is.")
@access_options("What it grants, of what the client has; all of it when left out; repeatable.")
@click.option(
    "--life", type=DURATION, metavar="DURATION", help="How long it is good. [default: for ever]"
)
@click.option("--name", metavar="TEXT", default="", help="A name for people.")
@secret_file_option
@json_option
@click.pass_obj
def create(
    connection: Connection,
    /,
    client_id: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    life: int | None,
    name: str,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Create an API key, and print it: alone on stdout, and never again.

    \b
    Examples:
      anabranch auth keys create --client billing --life 90d --name "nightly export"
      anabranch auth keys create --client billing --model 'qwen*' --secret-file export.key
    """
    request = pb.CreateApiKeyRequest(
        client_id=client_id,
        scopes=scopes,
        models=models,
        life=None if life is None else duration(life),
        display_name=name,
    )
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("client", client_id, lambda: client_names(auth)),
        secret_output(secret_file) as output,
    ):
        answer = auth.stub.CreateApiKey(request)
        output.show(
            answer.api_key,
            f"API key {answer.info.key_id} of the client {answer.info.client_id}",
            name="api_key",
            public=views.api_key(answer.info),
            as_json=as_json,
        )


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@yes_option
@json_option
@click.pass_obj
def revoke(connection: Connection, /, key_id: str, yes: bool, as_json: bool) -> None:
    """Revoke the API key with this public id, and every token that was issued for it.

    \b
    Example:
      anabranch auth keys revoke 4k9x0q2m7c1v8b5n --yes
    """
    if key_id.startswith(api_keys.PREFIX):
        raise click.UsageError(
            "that looks like a whole key, which other users of this machine can see among the "
            "arguments: give its public id, the 16 characters between the underscores"
        )
    confirm(f"Everything that uses the API key {key_id} will be refused.", yes=yes)
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("API key", key_id, lambda: key_names(auth)),
    ):
        auth.stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id))
        done = {"key_id": key_id, "revoked": True}
        print_json(done) if as_json else click.echo(f"revoked: {key_id}")


@keys.command()
@credential_argument
@json_option
def inspect(file: TextIO, as_json: bool) -> None:
    """Say whether the API key in FILE, or on stdin, was copied whole. Connects to nothing.

    The key itself is not printed. Whether it was ever issued, or is revoked, only the auth
    service knows: see `anabranch auth keys list`. Exits with 4 when it is damaged.

    \b
    Examples:
      anabranch auth keys inspect export.key
      pass show anabranch/export | anabranch auth keys inspect
    """
    text = read_credential(file, "API key")
    fault = api_keys.fault(text)
    if as_json:
        print_json(
            {
                "well_formed": not fault,
                "key_id": None if fault else api_keys.public_id(text),
                "fault": fault or None,
            }
        )
    else:
        click.echo(
            f"damaged: {fault}" if fault else f"well formed: public id {api_keys.public_id(text)}"
        )
    if fault:
        raise SystemExit(EXIT_REFUSED)
