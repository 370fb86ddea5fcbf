"""Commands about clients: list, show, create, update, disable, rotate-secret."""

from __future__ import annotations

import click

from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm
from anabranch.cli.auth.calls import administrator, client_names, find_client, hinting, listed
from anabranch.cli.auth.options import (
    access_options,
    all_option,
    client_options,
    secret_file_option,
    yes_option,
)
from anabranch.cli.auth.secret_output import secret_output
from anabranch.cli.auth.times import duration
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb


@click.group()
def clients() -> None:
    """Clients: the services and people that may call the cluster, each with a secret.

    \b
    Examples:
      anabranch auth clients list
      anabranch auth clients create billing --tenant finance --scope generate
      anabranch auth clients rotate-secret billing --secret-file billing.secret
    """


@clients.command("list")
@all_option
@json_option
@click.pass_obj
def list_clients(connection: Connection, /, every_page: bool, as_json: bool) -> None:
    """List the clients, by their ids.

    \b
    Examples:
      anabranch auth clients list
      anabranch auth clients list --all --json | jq -r '.[] | select(.disabled) | .client_id'
    """
    with administrator(connection, as_json=as_json) as auth:
        request = pb.ListClientsRequest()
        found = listed(auth, auth.stub.ListClients, request, "clients", every_page=every_page)
        print_json([views.client(c) for c in found]) if as_json else views.print_clients(found)


@clients.command()
@click.argument("client_id", metavar="ID")
@json_option
@click.pass_obj
def show(connection: Connection, /, client_id: str, as_json: bool) -> None:
    """Show one client.

    \b
    Example:
      anabranch auth clients show billing
    """
    with administrator(connection, as_json=as_json) as auth:
        _print(find_client(auth, client_id), as_json=as_json)


@clients.command()
@click.argument("client_id", metavar="ID")
@click.option("-t", "--tenant", required=True, help="The tenant that it belongs to.")
@access_options("A scope that its tokens may carry; repeatable.")
@client_options
@click.option("--name", metavar="TEXT", default="", help="A name for people.")
@secret_file_option
@json_option
@click.pass_obj
def create(
    connection: Connection,
    /,
    client_id: str,
    tenant: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    roles: tuple[str, ...],
    cidrs: tuple[str, ...],
    token_life: int | None,
    name: str,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Create a client, and print its secret: alone on stdout, and never again.

    It needs a scope or a role. Without --model it may ask what you may ask, unless a role says
    so.

    \b
    Examples:
      anabranch auth clients create billing --tenant finance --scope generate --model 'qwen*'
      anabranch auth clients create gateway --tenant web --role chat --cidr 10.20.0.0/16 \\
          --token-life 5m --secret-file gateway.secret
    """
    if not scopes and not roles:
        raise click.UsageError("say what it may do: give --scope or --role")
    request = pb.CreateClientRequest(
        client_id=client_id,
        tenant=tenant,
        display_name=name,
        scopes=scopes,
        roles=roles,
        models=models,
        allowed_cidrs=cidrs,
        token_life=None if token_life is None else duration(token_life),
    )
    with administrator(connection, as_json=as_json) as auth, secret_output(secret_file) as output:
        answer = auth.stub.CreateClient(request)
        output.show(
            answer.client_secret,
            f"Secret of the client {answer.client.client_id} of the tenant {answer.client.tenant}",
            name="client_secret",
            public=views.client(answer.client),
            as_json=as_json,
        )


@clients.command()
@click.argument("client_id", metavar="ID")
@access_options("A scope; those given replace the ones it has; repeatable.")
@click.option("--no-models", is_flag=True, help="Take away the models of its own.")
@client_options
@click.option("--no-roles", is_flag=True, help="Take away its roles.")
@click.option("--no-cidrs", is_flag=True, help="Let it call from everywhere.")
@click.option("--name", metavar="TEXT", help="A name for people.")
@json_option
@click.pass_obj
def update(
    connection: Connection,
    /,
    client_id: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    no_models: bool,
    roles: tuple[str, ...],
    no_roles: bool,
    cidrs: tuple[str, ...],
    no_cidrs: bool,
    token_life: int | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Change a client. What is not named stays as it is; a list that is named is replaced whole.

    It holds from the client's next token.

    \b
    Examples:
      anabranch auth clients update billing --scope generate --scope observe
      anabranch auth clients update billing --no-cidrs --name "Billing, nightly runs"
    """
    request = pb.UpdateClientRequest(
        client_id=client_id,
        display_name=name,
        scopes=scopes,
        token_life=None if token_life is None else duration(token_life),
        roles=_replacement("role", roles, no_roles),
        models=_replacement("model", models, no_models),
        allowed_cidrs=_replacement("cidr", cidrs, no_cidrs),
    )
    if request == pb.UpdateClientRequest(client_id=client_id):
        raise click.UsageError("say what to change, such as --scope; see --help")
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("client", client_id, lambda: client_names(auth)),
    ):
        _print(auth.stub.UpdateClient(request).client, as_json=as_json)


@clients.command()
@click.argument("client_id", metavar="ID")
@yes_option
@json_option
@click.pass_obj
def disable(connection: Connection, /, client_id: str, yes: bool, as_json: bool) -> None:
    """Disable a client: its tokens die everywhere within seconds, and it gets no new ones.

    \b
    Example:
      anabranch auth clients disable billing --yes
    """
    confirm(f"Every request of the client {client_id} will be refused.", yes=yes)
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("client", client_id, lambda: client_names(auth)),
    ):
        auth.stub.DisableClient(pb.DisableClientRequest(client_id=client_id))
        done = {"client_id": client_id, "disabled": True}
        print_json(done) if as_json else click.echo(f"disabled: {client_id}")


@clients.command("rotate-secret")
@click.argument("client_id", metavar="ID")
@secret_file_option
@yes_option
@json_option
@click.pass_obj
def rotate_secret(
    connection: Connection,
    /,
    client_id: str,
    secret_file: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Replace a client's secret, and print the new one: alone on stdout, and never again.

    The secret before it is worthless at once; tokens issued for it live on until they end. A
    --secret-file that exists is replaced.

    \b
    Examples:
      anabranch auth clients rotate-secret billing
      anabranch auth clients rotate-secret billing --yes --secret-file /run/secrets/billing
    """
    confirm(f"The secret that the client {client_id} uses now will be worthless.", yes=yes)
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("client", client_id, lambda: client_names(auth)),
        secret_output(secret_file, replace=True) as output,
    ):
        answer = auth.stub.RotateClientSecret(pb.RotateClientSecretRequest(client_id=client_id))
        output.show(
            answer.client_secret,
            f"New secret of the client {client_id}",
            name="client_secret",
            public={"client_id": client_id},
            as_json=as_json,
        )


def _replacement(option: str, items: tuple[str, ...], none: bool) -> pb.StringList | None:
    """A list to put in the place of another; None leaves that as it is."""
    if items and none:
        raise click.UsageError(f"give either --{option} or --no-{option}s")
    return pb.StringList(items=items) if items or none else None


def _print(info: pb.ClientInfo, *, as_json: bool) -> None:
    print_json(views.client(info)) if as_json else views.print_clients([info])
