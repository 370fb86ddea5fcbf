"""Reads and writes roles, quotas and tenants within one transaction. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.models import clients, quotas, roles, tenants
from services.auth.rows import as_bytes, insert_into, joined, listed
from services.chassis.quotas.rules import Unit


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of scopes and model patterns."""

    name: str
    description: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """`amount` of a unit in each `period` of seconds, `burst` of it at once; "*" as in auth.proto.

    An empty `client_id` counts a tenant's clients together, an empty `model` all models.
    """

    tenant: str
    client_id: str
    model: str
    unit: Unit
    amount: int
    period: int
    burst: int

    @property
    def quota_id(self) -> str:
        """Made of what it is about, so that there is one for each."""
        return "/".join((self.unit, self.tenant, self.client_id, self.model))


@dataclass(frozen=True, slots=True)
class Tenant:
    """What holds for a tenant; `clients` counts those that it has."""

    name: str
    display_name: str = ""
    audit_detail: str = "metadata"
    cipher: str = "AES_256_GCM"
    clients: int = 0


class RuleRecords:
    """The rows, seen through one open transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def roles(self) -> list[Role]:
        """All of them, by name."""
        found = await self._connection.execute(
            select(roles).order_by(as_bytes(self._connection, roles.c.name))
        )
        return [Role(r.name, r.description, listed(r.scopes), listed(r.models)) for r in found]

    async def set_role(self, role: Role) -> None:
        """In place of the one of this name."""
        values = {
            "description": role.description,
            "scopes": joined(role.scopes),
            "models": joined(role.models),
        }
        await self._upsert(roles, {"name": role.name}, values)

    async def delete_role(self, name: str) -> bool:
        """Whether there was one."""
        done = await self._connection.execute(delete(roles).where(roles.c.name == name))
        return bool(done.rowcount)

    async def clients_with_role(self, name: str) -> int:
        """How many clients have it."""
        # Names hold no character that LIKE takes for something else.
        padded = " " + clients.c.roles + " "
        found = await self._connection.execute(
            select(func.count()).select_from(clients).where(padded.like(f"% {name} %"))
        )
        return int(found.scalar_one())

    async def quotas(self) -> list[Quota]:
        """All of them, by id."""
        ordered = as_bytes(self._connection, quotas.c.quota_id)
        found = await self._connection.execute(select(quotas).order_by(ordered))
        return [_quota(row) for row in found]

    async def quotas_after(
        self, quota_id: str, limit: int, *, tenant: str | None = None
    ) -> list[Quota]:
        """The next ones by id, of all or of those that hold for a tenant."""
        ordered = as_bytes(self._connection, quotas.c.quota_id)
        asked = select(quotas).where(ordered > quota_id).order_by(ordered).limit(limit)
        if tenant is not None:
            asked = asked.where(or_(quotas.c.tenant == tenant, quotas.c.tenant == "*"))
        return [_quota(row) for row in await self._connection.execute(asked)]

    async def set_quota(self, quota: Quota) -> None:
        """In place of the one of this id."""
        key = {"quota_id": quota.quota_id}
        values = {
            "tenant": quota.tenant,
            "client_id": quota.client_id,
            "model": quota.model,
            "unit": str(quota.unit),
            "amount": quota.amount,
            "period": quota.period,
            "burst": quota.burst,
        }
        await self._upsert(quotas, key, values)

    async def delete_quota(self, quota_id: str) -> bool:
        """Whether there was one."""
        done = await self._connection.execute(delete(quotas).where(quotas.c.quota_id == quota_id))
        return bool(done.rowcount)

    async def tenants(self) -> list[Tenant]:
        """Those that were set, by name; `clients` is not counted."""
        ordered = as_bytes(self._connection, tenants.c.name)
        found = await self._connection.execute(select(tenants).order_by(ordered))
        return [Tenant(r.name, r.display_name, r.audit_detail, r.cipher) for r in found]

    async def tenants_after(
        self, name: str, limit: int, *, only: str | None = None
    ) -> list[Tenant]:
        """The next of those that were set or have clients, by name; or of these the `only` one."""
        named = select(clients.c.tenant.label("name")).union(select(tenants.c.name)).subquery()
        ordered = as_bytes(self._connection, named.c.name)
        counted = (
            select(clients.c.tenant, func.count().label("count"))
            .group_by(clients.c.tenant)
            .subquery()
        )
        asked = (
            select(
                named.c.name,
                tenants.c.display_name,
                tenants.c.audit_detail,
                tenants.c.cipher,
                counted.c.count,
            )
            .select_from(named)
            .outerjoin(tenants, tenants.c.name == named.c.name)
            .outerjoin(counted, counted.c.tenant == named.c.name)
            .where(ordered > name)
            .order_by(ordered)
            .limit(limit)
        )
        if only is not None:
            asked = asked.where(named.c.name == only)
        found = await self._connection.execute(asked)
        default = Tenant("")
        return [
            Tenant(
                row.name,
                row.display_name or "",
                row.audit_detail or default.audit_detail,
                row.cipher or default.cipher,
                row[4] or 0,
            )
            for row in found
        ]

    async def set_tenant(self, tenant: Tenant) -> None:
        """In place of what was set for it."""
        values = {
            "display_name": tenant.display_name,
            "audit_detail": tenant.audit_detail,
            "cipher": tenant.cipher,
        }
        await self._upsert(tenants, {"name": tenant.name}, values)

    async def _upsert(self, table: Any, key: dict[str, str], values: dict[str, Any]) -> None:
        await self._connection.execute(
            insert_into(self._connection, table)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=list(key), set_=values)
        )


def _quota(row: Any) -> Quota:
    return Quota(
        row.tenant,
        row.client_id,
        row.model,
        Unit(row.unit),
        row.amount,
        row.period,
        row.burst,
    )
