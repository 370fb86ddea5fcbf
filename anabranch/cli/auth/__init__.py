"""`anabranch auth`: what an administrator does with the auth service, one file a subject.

Commands translate: options into messages of the contract, answers into tables and JSON. What is
allowed, the service decides.
"""

from __future__ import annotations

import click

from anabranch.cli.auth.audit import audit
from anabranch.cli.auth.clients import clients
from anabranch.cli.auth.keys import keys
from anabranch.cli.auth.quotas import quotas
from anabranch.cli.auth.roles import roles
from anabranch.cli.auth.signing import jwks, rotate_signing_key
from anabranch.cli.auth.tenants import tenants
from anabranch.cli.auth.token import token


@click.group()
def auth() -> None:
    """Administer the auth service: clients, API keys, roles, quotas, tenants, tokens, the audit
    trail. Needs the scope admin, or tenant-admin for one's own tenant.

    \b
    Examples:
      anabranch auth clients list
      anabranch auth clients create billing --tenant finance --scope generate
      anabranch auth keys create --client billing --life 90d --secret-file billing.key
      anabranch auth quotas set --tenant finance --requests 600 --per 1m
      anabranch auth audit query --since 1h

    The auth service is named by --auth-target before `auth`, or by ANABRANCH_AUTH_TARGET. What
    revokes or deletes asks first; scripts say --yes. New secrets are alone on stdout, or in
    --secret-file, and shown only once. docs/security/cli.md walks through a first day.
    """


for command in (
    clients,
    keys,
    roles,
    quotas,
    tenants,
    rotate_signing_key,
    jwks,
    token,
    audit,
):
    auth.add_command(command)

__all__ = ["auth"]
