"""Commands about tenants: list, set."""

from __future__ import annotations

import click

from anabranch.cli.auth import views
from anabranch.cli.auth.calls import administrator, find_tenant, listed
from anabranch.cli.auth.options import HintingChoice, all_option
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb
from anabranch.vocabulary import AuditDetail, Cipher


@click.group()
def tenants() -> None:
    """Tenants: the parts of an organisation, how they are audited and encrypted.

    \b
    Examples:
      anabranch auth tenants list
      anabranch auth tenants set finance --audit metadata --name "Finance department"
    """


@tenants.command("list")
@all_option
@json_option
@click.pass_obj
def list_tenants(connection: Connection, /, every_page: bool, as_json: bool) -> None:
    """List the tenants that have clients or were set.

    \b
    Example:
      anabranch auth tenants list
    """
    with administrator(connection, as_json=as_json) as auth:
        request = pb.ListTenantsRequest()
        found = listed(auth, auth.stub.ListTenants, request, "tenants", every_page=every_page)
        print_json([views.tenant(t) for t in found]) if as_json else views.print_tenants(found)


@tenants.command("set")
@click.argument("name", metavar="NAME")
@click.option(
    "--audit",
    type=HintingChoice(AuditDetail.names()),
    help="What of its requests is audited: nothing, who asked what, or prompts and answers too.",
)
@click.option(
    "--cipher",
    type=HintingChoice(Cipher.names()),
    help="With what its stored data is encrypted.",
)
@click.option("--name", "display_name", metavar="TEXT", help="A name for people.")
@json_option
@click.pass_obj
def set_tenant(
    connection: Connection,
    /,
    name: str,
    audit: str | None,
    cipher: str | None,
    display_name: str | None,
    as_json: bool,
) -> None:
    """Say how a tenant's requests are audited and its data encrypted. What is not named stays.

    A tenant that nobody set is audited by metadata and encrypted with AES-256-GCM. It holds from
    the next tokens; what was stored before stays as it was encrypted.

    \b
    Examples:
      anabranch auth tenants set finance --audit metadata --name "Finance department"
      anabranch auth tenants set shanghai --cipher sm4-gcm
    """
    if audit is None and cipher is None and display_name is None:
        raise click.UsageError("say what to set: --audit, --cipher or --name")
    with administrator(connection, as_json=as_json) as auth:
        # The contract replaces a tenant whole: what is not named would go back to its default.
        before = find_tenant(auth, name) or pb.Tenant()
        tenant = pb.Tenant(
            name=name,
            display_name=before.display_name if display_name is None else display_name,
            audit_detail=int(AuditDetail.parse(audit or before.audit_detail)),  # type: ignore[arg-type]
            cipher=int(Cipher.parse(cipher or before.cipher)),  # type: ignore[arg-type]
        )
        found = auth.stub.SetTenant(pb.SetTenantRequest(tenant=tenant)).tenant
        print_json(views.tenant(found)) if as_json else views.print_tenants([found])
