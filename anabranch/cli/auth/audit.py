"""Commands about the audit trail: query."""

from __future__ import annotations

from datetime import datetime

import click

from anabranch.auth_admin import LARGEST_PAGE
from anabranch.cli.auth import views
from anabranch.cli.auth.calls import administrator
from anabranch.cli.auth.options import COUNT, TIME
from anabranch.cli.auth.times import timestamp
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb


@click.group()
def audit() -> None:
    """The audit trail: who did what, when, and whether it was allowed. Needs the scope audit.

    \b
    Example:
      anabranch auth audit query --since 1h --action client.create
    """


@audit.command()
@click.option(
    "--since", type=TIME, metavar="TIME", help="Not older: how long ago (1h, 30d), or ISO 8601."
)
@click.option("--until", type=TIME, metavar="TIME", help="Not newer, written likewise.")
@click.option("-c", "--client", "client_id", metavar="ID", default="", help="Only what it did.")
@click.option("-t", "--tenant", default="", help="Only what concerns this tenant.")
@click.option("--action", default="", help="Only this action, such as client.create.")
@click.option(
    "--limit", type=COUNT, metavar="N", default=100, show_default=True, help="So many at most."
)
@json_option
@click.pass_obj
def query(
    connection: Connection,
    /,
    since: datetime | None,
    until: datetime | None,
    client_id: str,
    tenant: str,
    action: str,
    limit: int,
    as_json: bool,
) -> None:
    """List records of the audit trail, newest first.

    Times without a zone are UTC, as the ones shown are.

    \b
    Examples:
      anabranch auth audit query --since 1h
      anabranch auth audit query --since 2026-01-01 --until 2026-02-01 --tenant finance --limit 5000
      anabranch auth audit query --since 30d --json | jq -r '.[] | select(.succeeded | not)'
    """
    if since is not None and until is not None and since > until:
        raise click.UsageError("--since is later than --until: nothing is in between")
    request = pb.QueryAuditRequest(
        since=None if since is None else timestamp(since),
        until=None if until is None else timestamp(until),
        client_id=client_id,
        tenant=tenant,
        action=action,
        # One more than is shown, to know whether there are more.
        page_size=min(limit + 1, LARGEST_PAGE),
    )
    found: list[pb.AuditRecord] = []
    with administrator(connection, as_json=as_json) as auth:
        for page in auth.pages(auth.stub.QueryAudit, request):
            found += page.records
            if len(found) > limit:
                break
    if len(found) > limit:
        click.echo(f"There are more: these are the newest {limit}; see --limit.", err=True)
        del found[limit:]
    if as_json:
        print_json([views.audit_record(record) for record in found])
    else:
        views.print_audit_records(found)
