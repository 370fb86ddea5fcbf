"""Commands about tokens: issue, introspect, revoke."""

from __future__ import annotations

from typing import TextIO

import click

from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm, read_credential
from anabranch.cli.auth.calls import administrator
from anabranch.cli.auth.options import SCOPE, credential_argument, secret_file_option, yes_option
from anabranch.cli.auth.secret_output import secret_output
from anabranch.cli.auth.times import show_duration
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb
from anabranch.wire import seconds


@click.group()
def token() -> None:
    """Tokens: what services accept for some minutes, issued for a secret or an API key.

    \b
    Examples:
      anabranch auth token issue --scope generate
      anabranch auth token introspect token.txt
    """


@token.command()
@click.option(
    "-s",
    "--scope",
    "scopes",
    multiple=True,
    type=SCOPE,
    metavar="SCOPE",
    help="A scope wanted, of those that the client has; all when left out; repeatable.",
)
@secret_file_option
@json_option
@click.pass_obj
def issue(
    connection: Connection,
    /,
    scopes: tuple[str, ...],
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Get a token for your client id and secret, or your API key: stdout has the token alone.

    \b
    Examples:
      anabranch auth token issue --secret-file token.txt
      TOKEN=$(anabranch auth token issue --scope generate)
      grpcurl -H "authorization: Bearer $TOKEN" router:50051 anabranch.v1.ModelService/ListModels
    """
    with administrator(connection, as_json=as_json) as auth, secret_output(secret_file) as output:
        issued = auth.issue_token(*scopes)
        life = seconds(issued.expires_in)
        output.show(
            issued.access_token,
            f"Token for {', '.join(issued.scopes) or 'no scope'}, good for {show_duration(life)}",
            name="access_token",
            public={
                "token_type": issued.token_type,
                "expires_in": life,
                "scopes": list(issued.scopes),
            },
            as_json=as_json,
        )


@token.command()
@credential_argument
@json_option
@click.pass_obj
def introspect(connection: Connection, /, file: TextIO, as_json: bool) -> None:
    """Say whether the token in FILE, or on stdin, is good now, whose it is and what it grants.

    You see your own tokens, an administrator all; any other is reported as not active.

    \b
    Examples:
      anabranch auth token introspect token.txt
      anabranch auth token issue | anabranch auth token introspect --json
    """
    text = read_credential(file, "token")
    with administrator(connection, as_json=as_json) as auth:
        found = auth.stub.IntrospectToken(pb.IntrospectTokenRequest(token=text))
        if as_json:
            print_json(views.introspection(found))
        else:
            views.print_introspection(found)


@token.command()
@credential_argument
@yes_option
@json_option
@click.pass_obj
def revoke(connection: Connection, /, file: TextIO, yes: bool, as_json: bool) -> None:
    """Revoke the token in FILE, or on stdin: every service refuses it within seconds.

    Your own tokens you may revoke, an administrator all. One that is dead already is no error.

    \b
    Example:
      anabranch auth token revoke token.txt --yes
    """
    text = read_credential(file, "token")
    confirm("Everything that uses this token will be refused.", yes=yes)
    with administrator(connection, as_json=as_json) as auth:
        auth.stub.RevokeToken(pb.RevokeTokenRequest(token=text))
        print_json({"revoked": True}) if as_json else click.echo("revoked")
