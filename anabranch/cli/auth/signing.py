"""Commands about the keys that sign tokens: rotate-signing-key, jwks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
import grpc

from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm
from anabranch.cli.auth.calls import administrator
from anabranch.cli.auth.options import yes_option
from anabranch.cli.auth.times import show_age
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.errors import error_for
from anabranch.v1 import auth_pb2 as pb
from anabranch.wire import seconds


@click.command("rotate-signing-key")
@click.option(
    "--compromised",
    is_flag=True,
    help="The keys so far may be stolen: remove them now, and every token with them.",
)
@yes_option
@json_option
@click.pass_obj
def rotate_signing_key(
    connection: Connection, /, compromised: bool, yes: bool, as_json: bool
) -> None:
    """Publish the next key that signs tokens; it signs once every service has had time to learn it.

    No token dies of it: the key before stays until the last one that it signed has ended. While
    a key waits already, that one is shown and no other is made. With --compromised the new key
    signs at once, and whoever has a token must log in again.

    \b
    Examples:
      anabranch auth rotate-signing-key
      anabranch auth rotate-signing-key --compromised --yes
    """
    if compromised:
        confirm("Every token that was ever issued will be refused.", yes=yes)
    with administrator(connection, as_json=as_json) as auth:
        answer = auth.stub.RotateSigningKey(pb.RotateSigningKeyRequest(compromised=compromised))
        active_at = views.moment(answer, "active_at")
        if as_json:
            print_json({"kid": answer.kid, "active_at": active_at})
        else:
            click.echo(f"published: {answer.kid}, signs from {active_at}")


@click.command()
@json_option
@click.pass_obj
def jwks(connection: Connection, /, as_json: bool) -> None:
    """List the keys that verify tokens, their ages, and how much is revoked. Needs no credential.

    \b
    Examples:
      anabranch auth jwks
      anabranch auth jwks --json | jq -r '.keys[].kid'
    """
    with connection.auth_admin(as_json=as_json) as auth:
        answer = auth.stub.GetJwks(pb.GetJwksRequest())
        keys = [_key(jwk) for jwk in _published(answer.jwks_json)]
    revoked = {
        "revoked_tokens": len(answer.revoked_token_ids),
        "revoked_api_keys": len(answer.revoked_api_key_ids),
        "disabled_clients": len(answer.disabled_client_ids),
    }
    if as_json:
        print_json(
            {
                "issuer": answer.issuer,
                "keys": keys,
                **revoked,
                "max_age": seconds(answer.max_age),
                "version": answer.version,
            }
        )
        return
    views.print_signing_keys([{**key, "age": _age(key["issued_at"])} for key in keys])
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in revoked.items())
    click.echo(f"issuer {answer.issuer} · {counts}", err=True)


def _published(text: str) -> list[dict[str, Any]]:
    """The keys of a JWK Set. Raises InternalServiceError when that is none."""
    try:
        keys = json.loads(text)["keys"]
        if all(isinstance(key, dict) for key in keys):
            return list(keys)
    except (ValueError, KeyError, TypeError):
        pass
    raise error_for(
        "INTERNAL", "the auth service did not answer with a JWK Set", grpc.StatusCode.INTERNAL
    )


def _key(jwk: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a key; `iat`, the second it was made, is a member that not all have."""
    made = jwk.get("iat")
    return {
        "kid": str(jwk.get("kid", "")),
        "algorithm": str(jwk.get("alg", "")),
        "curve": str(jwk.get("crv", "")),
        "issued_at": made if isinstance(made, int) and not isinstance(made, bool) else None,
    }


def _age(issued_at: int | None) -> str:
    if issued_at is None:
        return "-"
    return show_age(datetime.now(UTC).timestamp() - issued_at)
