"""Roles, quotas and tenants of this moment in memory, so that a login reads one row.

What this replica changes holds at once; what another one does, within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from services.auth.entitlements import built_in_roles
from services.auth.rule_records import Quota, Role, RuleRecords, Tenant
from services.auth.store import Store
from services.chassis.errors import Fault

_log = logging.getLogger(__name__)

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Roles and tenants by name, the built-in roles included."""

    roles: Mapping[str, Role]
    quotas: tuple[Quota, ...]
    tenants: Mapping[str, Tenant]

    def tenant(self, name: str) -> Tenant:
        """What was set for a tenant, or the defaults."""
        return self.tenants.get(name) or Tenant(name)


async def read_roles(records: RuleRecords) -> dict[str, Role]:
    """Every role by name, the built-in ones too, as one transaction sees them."""
    return {role.name: role for role in await records.roles()} | built_in_roles()


async def read_rules(records: RuleRecords) -> Rules:
    """The rules as one transaction sees them."""
    roles = await read_roles(records)
    tenants = {tenant.name: tenant for tenant in await records.tenants()}
    return Rules(roles, tuple(await records.quotas()), tenants)


class Rulebook:
    """The rules, held. Load them once with `refresh` before asking for any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.now = Rules(built_in_roles(), (), {})

    async def refresh(self) -> None:
        """Reads them again. Raises Fault when the database is away."""
        async with self._store.reading() as records:
            self.now = await read_rules(records.rules)

    async def keep_fresh(self) -> None:
        """Learns what other replicas change, until cancelled, through outages of the database."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.refresh()
            except Fault as fault:
                _log.warning("rules could not be refreshed", extra={"cause": fault.message})
