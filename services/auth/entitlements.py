"""What a client's token carries: its own scopes and models and those of its roles. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.auth.core.roles import ADMIN, BUILT_IN, KNOWN_SCOPES
from services.auth.key_records import ApiKey
from services.auth.records import Client
from services.auth.rule_records import Quota, Role
from services.chassis.model_patterns import ANY, beyond, common
from services.chassis.peer_address import networks_of
from services.chassis.principal import Network, Principal
from services.chassis.quotas.rules import QuotaRule, Subject


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Scopes, model patterns, and the networks to which they are bound: none means no bound."""

    scopes: tuple[str, ...]
    models: tuple[str, ...]
    networks: tuple[str, ...] = ()

    def lacking(self, wanted: Entitlement) -> list[str]:
        """What whoever has this may not hand on of the wanted one. `admin` may hand on all."""
        if ADMIN in self.scopes:
            return []
        return [
            *sorted(set(wanted.scopes) - set(self.scopes)),
            *(f"model {pattern}" for pattern in beyond(self.models, wanted.models)),
            *_outside(self.networks, wanted.networks),
        ]


def _outside(bounds: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted networks that lie in none of the bounds."""
    if not bounds:
        return []
    if not wanted:
        return ["every network"]
    within = networks_of(bounds)
    return [
        f"network {network}"
        for network in networks_of(wanted)
        if not any(_lies_in(network, bound) for bound in within)
    ]


def _lies_in(network: Network, bound: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(bound, ipaddress.IPv4Network) and network.subnet_of(bound)
    return isinstance(bound, ipaddress.IPv6Network) and network.subnet_of(bound)


def entitlement_of(
    scopes: Iterable[str],
    models: Iterable[str],
    roles: Iterable[str],
    known: Mapping[str, Role],
    networks: Iterable[str] = (),
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
    held = all_scopes & KNOWN_SCOPES
    return Entitlement(tuple(sorted(held)), tuple(sorted(all_models)), tuple(networks))


def of_client(client: Client, known: Mapping[str, Role]) -> Entitlement:
    """What a client has."""
    return entitlement_of(client.scopes, client.models, client.roles, known, client.networks)


def of_key(key: ApiKey, client: Entitlement) -> Entitlement:
    """What a key gives: of what its client has now, what the key was made for."""
    scopes = tuple(scope for scope in client.scopes if scope in key.scopes)
    return Entitlement(scopes, common(client.models, key.models), client.networks)


def of_caller(principal: Principal) -> Entitlement:
    """What whoever calls has itself."""
    return Entitlement(
        tuple(sorted(principal.scopes)),
        tuple(sorted(principal.models)),
        tuple(map(str, principal.networks)),
    )


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
