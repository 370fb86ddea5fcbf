"""Commands about the audit trail: query and export."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

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

TRAIL = "auth"
"""What the auth service calls its trail."""


@click.group()
def audit() -> None:
    """The audit trail: who did what, when, and whether it was allowed. Needs the scope audit.

    \b
    Examples:
      anabranch auth audit query --since 1h --action client.create
      anabranch auth audit export trail/ && anabranch audit verify trail/
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


@audit.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@json_option
@click.pass_obj
def export(connection: Connection, /, directory: Path, as_json: bool) -> None:
    """Copy the whole trail and its signed head into DIRECTORY, as `anabranch audit verify` reads
    them. Heads of earlier exports stay there: with them a trail that was cut is recognised.

    \b
    Example:
      anabranch auth audit export /mnt/auditor/auth | tail -n 1 > auth-audit.key
      anabranch audit verify /mnt/auditor/auth --public-key "$(cat auth-audit.key)"
    """
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f".{TRAIL}.part"
    head: pb.AuditHead | None = None
    count = first = 0
    try:
        with administrator(connection, as_json=as_json) as auth, draft.open("wb") as out:
            request = pb.QueryAuditRequest(oldest_first=True, page_size=LARGEST_PAGE)
            for page in auth.pages(auth.stub.QueryAudit, request):
                # The first page's: what is written meanwhile is beyond it, and copied all the same.
                if head is None and page.HasField("head"):
                    head = page.head
                for record in page.records:
                    first = first or record.sequence
                    count += 1
                    out.write(
                        b'{"entry":%s,"hash":"%s"}\n'
                        % (record.canonical, record.hash.hex().encode())
                    )
                if count > LARGEST_PAGE:
                    click.echo(f"{count:,} records", err=True)
        for earlier in directory.glob(f"{TRAIL}-*.jsonl"):
            earlier.unlink()
        draft.replace(directory / f"{TRAIL}-{first:020}.jsonl")
    finally:
        draft.unlink(missing_ok=True)
    if head is not None:
        with (directory / f"{TRAIL}.heads.jsonl").open("ab") as heads:
            heads.write(_head_line(head))
    signed = 0 if head is None else head.sequence
    key = "" if head is None else head.public_key.hex()
    if as_json:
        print_json({"records": count, "signed": signed, "public_key": key})
        return
    click.echo(f"Copied {count:,} records; signed up to number {signed} with the key")
    click.echo(key)


def _head_line(head: pb.AuditHead) -> bytes:
    """A signed head as trails keep it: one line of JSON, its names in order."""
    value = {
        "hash": head.hash.hex(),
        "key_id": head.key_id,
        "public_key": head.public_key.hex(),
        "sequence": head.sequence,
        "signature": head.signature.hex(),
        "time_us": head.time.ToMicroseconds(),
        "trail": head.trail,
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
