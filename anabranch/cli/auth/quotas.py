"""Commands about quotas: list, set, delete."""

from __future__ import annotations

import click

from anabranch.cli.auth import views
from anabranch.cli.auth.asking import confirm
from anabranch.cli.auth.calls import administrator, hinting, listed, quota_names
from anabranch.cli.auth.options import COUNT, DURATION, MicrodollarType, all_option, yes_option
from anabranch.cli.auth.times import duration
from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from anabranch.v1 import auth_pb2 as pb
from anabranch.vocabulary import QuotaUnit


@click.group()
def quotas() -> None:
    """Quotas: how much a tenant or client may use of the models in each period.

    \b
    Examples:
      anabranch auth quotas set --tenant finance --tokens 1000000 --per 1h
      anabranch auth quotas set --tenant finance --cost 25 --per 1d
      anabranch auth quotas list --tenant finance
    """


@quotas.command("list")
@click.option("-t", "--tenant", default="", help="Only those that hold for this tenant.")
@all_option
@json_option
@click.pass_obj
def list_quotas(connection: Connection, /, tenant: str, every_page: bool, as_json: bool) -> None:
    """List the quotas.

    \b
    Examples:
      anabranch auth quotas list
      anabranch auth quotas list --tenant finance --json
    """
    with administrator(connection, as_json=as_json) as auth:
        request = pb.ListQuotasRequest(tenant=tenant)
        found = listed(auth, auth.stub.ListQuotas, request, "quotas", every_page=every_page)
        print_json([views.quota(q) for q in found]) if as_json else views.print_quotas(found)


@quotas.command("set")
@click.option("-t", "--tenant", required=True, help="The tenant; '*' is each by itself.")
@click.option(
    "-c",
    "--client",
    "client_id",
    metavar="ID",
    default="",
    help="One client; '*' is each by itself. [default: the tenant's clients together]",
)
@click.option(
    "-m",
    "--model",
    metavar="PATTERN",
    default="",
    help="A model, or a beginning and '*'. [default: all models together]",
)
@click.option("--requests", type=COUNT, metavar="N", help="So many requests.")
@click.option("--tokens", type=COUNT, metavar="N", help="So many tokens, of prompt and answer.")
@click.option("--cost", type=MicrodollarType(), metavar="USD", help="So much money in the cloud.")
@click.option(
    "--per", type=DURATION, metavar="DURATION", required=True, help="The period: 1s to 31d."
)
@click.option(
    "--burst",
    type=COUNT,
    metavar="N",
    help="So many requests or tokens at once. [default: as many as in a period]",
)
@json_option
@click.pass_obj
def set_quota(
    connection: Connection,
    /,
    tenant: str,
    client_id: str,
    model: str,
    requests: int | None,
    tokens: int | None,
    cost: int | None,
    per: int,
    burst: int | None,
    as_json: bool,
) -> None:
    """Create a quota, or replace the one for the same tenant, client, model and unit.

    Give exactly one of --requests, --tokens and --cost. Requests and tokens come back evenly over
    the period; money all at once when the next period begins. It holds from the next tokens.

    \b
    Examples:
      anabranch auth quotas set --tenant finance --requests 600 --per 1m --burst 50
      anabranch auth quotas set --tenant '*' --client '*' --tokens 200000 --per 1m
      anabranch auth quotas set --tenant finance --model 'gpt-*' --cost 12.50 --per 1d
    """
    amounts = {
        QuotaUnit.REQUESTS: requests,
        QuotaUnit.TOKENS: tokens,
        QuotaUnit.COST_MICROUSD: cost,
    }
    given = [(unit, amount) for unit, amount in amounts.items() if amount is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --requests, --tokens and --cost")
    unit, amount = given[0]
    if burst is not None and unit is QuotaUnit.COST_MICROUSD:
        raise click.UsageError("--burst is for requests and tokens: money has none")
    quota = pb.Quota(
        tenant=tenant,
        client_id=client_id,
        model=model,
        unit=int(unit),  # type: ignore[arg-type]
        limit=amount,
        period=duration(per),
        burst=burst or 0,
    )
    with administrator(connection, as_json=as_json) as auth:
        found = auth.stub.SetQuota(pb.SetQuotaRequest(quota=quota)).quota
        print_json(views.quota(found)) if as_json else views.print_quotas([found])


@quotas.command()
@click.argument("quota_id", metavar="QUOTA_ID")
@yes_option
@json_option
@click.pass_obj
def delete(connection: Connection, /, quota_id: str, yes: bool, as_json: bool) -> None:
    """Delete a quota, by the id that `anabranch auth quotas list` shows.

    \b
    Example:
      anabranch auth quotas delete "$(anabranch auth quotas list --json | jq -r '.[0].quota_id')"
    """
    confirm(f"Nothing will be limited by the quota {quota_id} any more.", yes=yes)
    with (
        administrator(connection, as_json=as_json) as auth,
        hinting("quota", quota_id, lambda: quota_names(auth)),
    ):
        auth.stub.DeleteQuota(pb.DeleteQuotaRequest(quota_id=quota_id))
        done = {"quota_id": quota_id, "deleted": True}
        print_json(done) if as_json else click.echo(f"deleted: {quota_id}")
