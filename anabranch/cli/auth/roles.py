"""Commands about roles: list, show, set, delete."""

from __future__ import annotations

import click

from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm
from anabranch.cli.auth.calls import administrator, find_role, hinting, role_names
from anabranch.cli.auth.options import access_options, yes_option
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb


@click.group()
def roles() -> None:
    """Roles: named sets of scopes and models, which clients are given.

    \b
    Examples:
      anabranch auth roles list
      anabranch auth roles set chat --scope generate --model 'qwen*'
    """


@roles.command("list")
@json_option
@click.pass_obj
def list_roles(connection: Connection, /, as_json: bool) -> None:
    """List the roles, those that come with the service too.

    \b
    Example:
      anabranch auth roles list
    """
    with administrator(connection, as_json=as_json) as auth:
        found = auth.stub.ListRoles(pb.ListRolesRequest()).roles
        print_json([views.role(r) for r in found]) if as_json else views.print_roles(found)


@roles.command()
@click.argument("name", metavar="NAME")
@json_option
@click.pass_obj
def show(connection: Connection, /, name: str, as_json: bool) -> None:
    """Show one role.

    \b
    Example:
      anabranch auth roles show chat --json
    """
    with administrator(connection, as_json=as_json) as auth:
        _print(find_role(auth, name), as_json=as_json)


@roles.command("set")
@click.argument("name", metavar="NAME")
@access_options("A scope that it gives; those given replace the ones it has; repeatable.")
@click.option("--no-scopes", is_flag=True, help="Take away its scopes.")
@click.option("--no-models", is_flag=True, help="Take away its models.")
@click.option("--description", metavar="TEXT", help="What it is for.")
@json_option
@click.pass_obj
def set_role(
    connection: Connection,
    /,
    name: str,
    scopes: tuple[str, ...],
    no_scopes: bool,
    models: tuple[str, ...],
    no_models: bool,
    description: str | None,
    as_json: bool,
) -> None:
    """Create a role, or change one: what is not named stays, a list that is named is replaced.

    It holds from the next tokens of the clients that have it.

    \b
    Examples:
      anabranch auth roles set chat --scope generate --model 'qwen*' --description "Chat of shops"
      anabranch auth roles set chat --model 'qwen*' --model 'llama-3*'
    """
    if (scopes and no_scopes) or (models and no_models):
        raise click.UsageError("give either a list, or that there is none of it")
    if not (scopes or no_scopes or models or no_models or description is not None):
        raise click.UsageError("say what it gives: --scope, --model, --description; see --help")
    with administrator(connection, as_json=as_json) as auth:
        # The contract replaces a role whole, so what is not named is read first.
        every = auth.stub.ListRoles(pb.ListRolesRequest()).roles
        before = next((r for r in every if r.name == name), pb.AccessRole())
        role = pb.AccessRole(
            name=name,
            description=before.description if description is None else description,
            scopes=scopes or ([] if no_scopes else before.scopes),
            models=models or ([] if no_models else before.models),
        )
        _print(auth.stub.SetRole(pb.SetRoleRequest(role=role)).role, as_json=as_json)


@roles.command()
@click.argument("name", metavar="NAME")
@yes_option
@json_option
@click.pass_obj
def delete(connection: Connection, /, name: str, yes: bool, as_json: bool) -> None:
    """Delete a role that no client has any more.

    \b
    Example:
      anabranch auth roles delete chat --yes
    """
    confirm(f"The role {name} will be gone.", yes=yes)
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("role", name, lambda: role_names(auth)),
    ):
        auth.stub.DeleteRole(pb.DeleteRoleRequest(name=name))
        done = {"name": name, "deleted": True}
        print_json(done) if as_json else click.echo(f"deleted: {name}")


def _print(role: pb.AccessRole, *, as_json: bool) -> None:
    print_json(views.role(role)) if as_json else views.print_roles([role])
