"""Roles, quotas and tenants, on the wire."""

from __future__ import annotations

import re
from typing import TypeAlias

import grpc

from anabranch.v1 import auth_pb2 as pb
from services.auth.authority import authority_of
from services.auth.checks import model_problems, quota_problems
from services.auth.core.clients import (
    Problem,
    display_name_problems,
    name_problems,
    scope_problems,
)
from services.auth.core.roles import BUILT_IN
from services.auth.login import refuse
from services.auth.rpcs.wire import (
    act,
    duration,
    nanoseconds,
    page_of,
    page_token,
    whole_seconds,
)
from services.auth.rule_records import Quota, Role, Tenant
from services.auth.rulebook import Rulebook
from services.auth.rules import RuleChanges
from services.chassis.audit.detail import AuditDetail
from services.chassis.principal import current_principal
from services.chassis.quotas.rules import Unit

Context: TypeAlias = grpc.aio.ServicerContext

_UNITS = {
    pb.QUOTA_UNIT_REQUESTS: Unit.REQUESTS,
    pb.QUOTA_UNIT_TOKENS: Unit.TOKENS,
    pb.QUOTA_UNIT_COST_MICROUSD: Unit.COST,
}
_UNITS_ON_WIRE = {unit: number for number, unit in _UNITS.items()}
_DETAILS = {
    pb.AUDIT_DETAIL_UNSPECIFIED: AuditDetail.METADATA,
    pb.AUDIT_DETAIL_NONE: AuditDetail.NONE,
    pb.AUDIT_DETAIL_METADATA: AuditDetail.METADATA,
    pb.AUDIT_DETAIL_CONTENT: AuditDetail.CONTENT,
}
_DETAILS_ON_WIRE = {
    AuditDetail.NONE: pb.AUDIT_DETAIL_NONE,
    AuditDetail.METADATA: pb.AUDIT_DETAIL_METADATA,
    AuditDetail.CONTENT: pb.AUDIT_DETAIL_CONTENT,
}
_CIPHERS = {
    pb.CIPHER_UNSPECIFIED: "AES_256_GCM",
    pb.CIPHER_AES_256_GCM: "AES_256_GCM",
    pb.CIPHER_SM4_GCM: "SM4_GCM",
}
# Unit, tenant, client and model. What is none is neither looked up nor written down.
_QUOTA_ID = re.compile(
    r"(requests|tokens|cost)/([a-z0-9-]{3,63}|\*)/([a-z0-9-]{3,63}|\*?)/[A-Za-z0-9._:/@+-]{0,128}\*?"
)


class RuleRpcs:
    """SetRole, ListRoles, DeleteRole, SetQuota, ListQuotas, DeleteQuota, SetTenant, ListTenants."""

    def __init__(self, changes: RuleChanges, rulebook: Rulebook) -> None:
        self._changes = changes
        self._rulebook = rulebook

    async def SetRole(self, request: pb.SetRoleRequest, context: Context) -> pb.SetRoleResponse:
        asked = request.role
        problems = name_problems("role.name", asked.name)
        problems += display_name_problems("role.description", asked.description)
        problems += scope_problems("role.scopes", asked.scopes)
        problems += model_problems("role.models", asked.models)
        if not asked.scopes and not asked.models:
            problems.append(Problem("role", "must give a scope or a model"))
        refuse(problems)
        role = Role(asked.name, asked.description, tuple(asked.scopes), tuple(asked.models))
        await self._changes.set_role(
            role,
            authority_of(current_principal()),
            act("role.set", role.name, scopes=role.scopes, models=role.models),
        )
        return pb.SetRoleResponse(role=_role(role))

    async def ListRoles(
        self, request: pb.ListRolesRequest, context: Context
    ) -> pb.ListRolesResponse:
        roles = self._rulebook.now.roles
        return pb.ListRolesResponse(roles=[_role(roles[name]) for name in sorted(roles)])

    async def DeleteRole(
        self, request: pb.DeleteRoleRequest, context: Context
    ) -> pb.DeleteRoleResponse:
        refuse(name_problems("name", request.name))
        await self._changes.delete_role(
            request.name, authority_of(current_principal()), act("role.delete", request.name)
        )
        return pb.DeleteRoleResponse()

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.SetQuotaResponse:
        asked = request.quota
        unit = _UNITS.get(asked.unit)
        quota = Quota(
            asked.tenant,
            asked.client_id,
            asked.model,
            unit or Unit.REQUESTS,
            asked.limit,
            whole_seconds(asked.period),
            asked.burst or asked.limit,
        )
        problems = quota_problems(quota, nanoseconds(asked.period))
        if unit is None:
            problems.append(Problem("quota.unit", "must be a unit: requests, tokens or cost"))
        refuse(problems)
        await self._changes.set_quota(
            quota,
            authority_of(current_principal()),
            act("quota.set", quota.quota_id, limit=quota.amount, period=quota.period),
        )
        return pb.SetQuotaResponse(quota=_quota(quota))

    async def ListQuotas(
        self, request: pb.ListQuotasRequest, context: Context
    ) -> pb.ListQuotasResponse:
        problems = name_problems("tenant", request.tenant) if request.tenant else []
        after, size = page_of(request.page_size, request.page_token, problems)
        refuse(problems)
        quotas, more = await self._changes.quotas(
            after, size, authority_of(current_principal()), request.tenant
        )
        return pb.ListQuotasResponse(
            quotas=[_quota(quota) for quota in quotas],
            next_page_token=page_token(quotas[-1].quota_id) if more else "",
        )

    async def DeleteQuota(
        self, request: pb.DeleteQuotaRequest, context: Context
    ) -> pb.DeleteQuotaResponse:
        quota_id = request.quota_id
        if not _QUOTA_ID.fullmatch(quota_id):
            refuse([Problem("quota_id", "must be a quota_id of ListQuotas")])
        await self._changes.delete_quota(
            quota_id, authority_of(current_principal()), act("quota.delete", quota_id)
        )
        return pb.DeleteQuotaResponse()

    async def SetTenant(
        self, request: pb.SetTenantRequest, context: Context
    ) -> pb.SetTenantResponse:
        asked = request.tenant
        detail, cipher = _DETAILS.get(asked.audit_detail), _CIPHERS.get(asked.cipher)
        problems = name_problems("tenant.name", asked.name)
        problems += display_name_problems("tenant.display_name", asked.display_name)
        if detail is None:
            problems.append(Problem("tenant.audit_detail", "is no AuditDetail"))
        if cipher is None:
            problems.append(Problem("tenant.cipher", "is no Cipher"))
        refuse(problems)
        tenant = await self._changes.set_tenant(
            Tenant(asked.name, asked.display_name, str(detail), cipher or ""),
            authority_of(current_principal()),
            act("tenant.set", asked.name, audit=str(detail), cipher=cipher or ""),
        )
        return pb.SetTenantResponse(tenant=_tenant(tenant))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        problems: list[Problem] = []
        after, size = page_of(request.page_size, request.page_token, problems)
        refuse(problems)
        tenants, more = await self._changes.tenants(after, size, authority_of(current_principal()))
        return pb.ListTenantsResponse(
            tenants=[_tenant(tenant) for tenant in tenants],
            next_page_token=page_token(tenants[-1].name) if more else "",
        )


def _role(role: Role) -> pb.AccessRole:
    return pb.AccessRole(
        name=role.name,
        description=role.description,
        scopes=role.scopes,
        models=role.models,
        built_in=role.name in BUILT_IN,
    )


def _quota(quota: Quota) -> pb.Quota:
    return pb.Quota(
        quota_id=quota.quota_id,
        tenant=quota.tenant,
        client_id=quota.client_id,
        model=quota.model,
        unit=_UNITS_ON_WIRE[quota.unit],
        limit=quota.amount,
        period=duration(quota.period),
        burst=0 if quota.unit is Unit.COST else quota.burst,
    )


def _tenant(tenant: Tenant) -> pb.Tenant:
    return pb.Tenant(
        name=tenant.name,
        display_name=tenant.display_name,
        audit_detail=_DETAILS_ON_WIRE[AuditDetail(tenant.audit_detail)],
        cipher=pb.CIPHER_SM4_GCM if tenant.cipher == "SM4_GCM" else pb.CIPHER_AES_256_GCM,
        clients=tenant.clients,
    )
