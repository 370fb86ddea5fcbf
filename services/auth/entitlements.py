"""What a client's token carries: its own scopes and models and those of its roles. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.auth.core.roles import ADMIN, BUILT_IN, KNOWN_SCOPES
from services.auth.key_records import ApiKey
from services.auth.records import Client
from services.auth.rule_records import Quota, Role
from services.chassis.model_patterns import ANY, beyond, common
from services.chassis.principal import Principal
from services.chassis.quotas.rules import QuotaRule, Subject


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Scopes and model patterns, both sorted."""

    scopes: tuple[str, ...]
    models: tuple[str, ...]

    def covers(self, other: Entitlement) -> bool:
        """Whether whoever has this may hand the other one on. `admin` may hand on everything."""
        if ADMIN in self.scopes:
            return True
        return set(other.scopes) <= set(self.scopes) and not beyond(self.models, other.models)


def entitlement_of(
    scopes: Iterable[str], models: Iterable[str], roles: Iterable[str], known: Mapping[str, Role]
) -> Entitlement:
    """Those given directly and those of the roles; a role that is gone gives nothing."""
    all_scopes, all_models = set(scopes), set(models)
    for name in roles:
        role = known.get(name)
        if role is not None:
            all_scopes.update(role.scopes)
            all_models.update(role.models)
    if ANY in all_models:
        all_models = {ANY}
    return Entitlement(tuple(sorted(all_scopes & KNOWN_SCOPES)), tuple(sorted(all_models)))


def of_client(client: Client, known: Mapping[str, Role]) -> Entitlement:
    """What a client has."""
    return entitlement_of(client.scopes, client.models, client.roles, known)


def of_key(key: ApiKey, client: Entitlement) -> Entitlement:
    """What a key gives: of what its client has now, what the key was made for."""
    scopes = tuple(scope for scope in client.scopes if scope in key.scopes)
    return Entitlement(scopes, common(client.models, key.models))


def of_caller(principal: Principal) -> Entitlement:
    """What whoever calls has itself."""
    return Entitlement(tuple(sorted(principal.scopes)), tuple(sorted(principal.models)))


def built_in_roles() -> dict[str, Role]:
    """The roles that cannot be changed, by name."""
    return {
        name: Role(name, role.description, role.scopes, role.models)
        for name, role in BUILT_IN.items()
    }


def rules_for(quotas: Sequence[Quota], tenant: str, client_id: str) -> tuple[QuotaRule, ...]:
    """The quotas that hold for a client; one of its own replaces that of everybody."""
    chosen: dict[tuple[Subject, str, str], tuple[int, QuotaRule]] = {}
    for quota in quotas:
        if quota.tenant not in (tenant, "*") or quota.client_id not in (client_id, "*", ""):
            continue
        subject = Subject.CLIENT if quota.client_id else Subject.TENANT
        rule = QuotaRule(subject, quota.unit, quota.amount, quota.period, quota.burst, quota.model)
        rank = 2 * (quota.tenant != "*") + (quota.client_id not in ("", "*"))
        key = (subject, str(quota.unit), quota.model)
        if key not in chosen or chosen[key][0] < rank:
            chosen[key] = (rank, rule)
    return tuple(rule for _, rule in sorted(chosen.values(), key=lambda pair: pair[1].as_text()))
