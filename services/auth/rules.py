"""Changes roles, quotas and tenants, for administrators. Requests arrive validated in form."""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from services.auth.acts import Acts
from services.auth.authority import Authority
from services.auth.checks import too_many_quotas
from services.auth.core.roles import BUILT_IN
from services.auth.login import refuse
from services.auth.rule_records import Quota, Role, Tenant
from services.auth.rulebook import Rulebook
from services.auth.store import Store
from services.chassis.audit.entry import Act
from services.chassis.errors import Fault


class RuleChanges:
    """The roles, quotas and tenants of the organisation. A change holds from the next tokens."""

    def __init__(self, store: Store, acts: Acts, rulebook: Rulebook) -> None:
        self._store = store
        self._acts = acts
        self._rulebook = rulebook

    async def set_role(self, role: Role, authority: Authority, act: Act) -> None:
        """Raises Fault (ACCESS_DENIED) for a role that comes with the service."""
        async with self._acts.changing(act, authority) as change:
            change.authority.check_everywhere()
            if role.name in BUILT_IN:
                raise _built_in(errors_pb2.ERROR_REASON_ACCESS_DENIED, role.name)
            await change.records.rules.set_role(role)
        await self._rulebook.refresh()

    async def delete_role(self, name: str, authority: Authority, act: Act) -> None:
        """Raises Fault: NOT_FOUND, IN_USE."""
        async with self._acts.changing(act, authority) as change:
            change.authority.check_everywhere()
            if name in BUILT_IN:
                raise _built_in(errors_pb2.ERROR_REASON_IN_USE, name)
            users = await change.records.rules.clients_with_role(name)
            if users:
                raise Fault(
                    errors_pb2.ERROR_REASON_IN_USE,
                    f"{users} client{'' if users == 1 else 's'} still have the role",
                    metadata={"role": name, "clients": str(users)},
                )
            if not await change.records.rules.delete_role(name):
                raise Fault(
                    errors_pb2.ERROR_REASON_NOT_FOUND, "no such role", metadata={"role": name}
                )
        await self._rulebook.refresh()

    async def set_quota(self, quota: Quota, authority: Authority, act: Act) -> None:
        """Raises Fault: NOT_FOUND for a client that is not the tenant's, INVALID_REQUEST when
        there would be too many for one token."""
        async with self._acts.changing(act, authority) as change:
            change.authority.check_everywhere()
            if quota.client_id not in ("", "*"):
                client = await change.records.client(quota.client_id)
                if client is None or client.tenant != quota.tenant:
                    raise Fault(
                        errors_pb2.ERROR_REASON_NOT_FOUND,
                        "the tenant has no such client",
                        metadata={"client_id": quota.client_id},
                    )
            refuse(too_many_quotas(await change.records.rules.quotas(), quota))
            await change.records.rules.set_quota(quota)
        await self._rulebook.refresh()

    async def delete_quota(self, quota_id: str, authority: Authority, act: Act) -> None:
        """Raises Fault (NOT_FOUND)."""
        async with self._acts.changing(act, authority) as change:
            change.authority.check_everywhere()
            if not await change.records.rules.delete_quota(quota_id):
                raise Fault(
                    errors_pb2.ERROR_REASON_NOT_FOUND,
                    "no such quota",
                    metadata={"quota_id": quota_id},
                )
        await self._rulebook.refresh()

    async def quotas(
        self, after: str, size: int, authority: Authority, tenant: str
    ) -> tuple[list[Quota], bool]:
        """Quotas whose id comes after this one, and whether there are more."""
        if tenant:
            authority.check_tenant(tenant)
        async with self._store.reading() as records:
            found = await records.rules.quotas_after(
                after, size + 1, tenant=tenant or authority.own_tenant
            )
        return found[:size], len(found) > size

    async def set_tenant(self, tenant: Tenant, authority: Authority, act: Act) -> Tenant:
        """The tenant as it is now."""
        async with self._acts.changing(act, authority) as change:
            change.authority.check_everywhere()
            change.concerns(tenant=tenant.name)
            await change.records.rules.set_tenant(tenant)
            (now,) = await change.records.rules.tenants_after("", 1, only=tenant.name)
        await self._rulebook.refresh()
        return now

    async def tenants(
        self, after: str, size: int, authority: Authority
    ) -> tuple[list[Tenant], bool]:
        """Tenants whose name comes after this one, and whether there are more."""
        async with self._store.reading() as records:
            found = await records.rules.tenants_after(after, size + 1, only=authority.own_tenant)
        return found[:size], len(found) > size


def _built_in(reason: errors_pb2.ErrorReason, name: str) -> Fault:
    return Fault(reason, "the role comes with the service", metadata={"role": name})
