"""What the auth service must answer, said as simply as possible: sets, no database, no signature.

Models are sets of names out of a small world rather than patterns, so that how patterns are joined
and cut is not copied from the code. It makes no calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LEEWAY = 30
WORLD = ("sim-river", "sim-lake", "cloud-a", "cloud-b", "other")
"""Every model that a question is about. Each of the tests' patterns has one of its own."""

BUILT_IN_SCOPES: Mapping[str, frozenset[str]] = {
    "caller": frozenset({"generate"}),
    "viewer": frozenset({"observe"}),
}
Rule = tuple[str, str, int, int, int, str]
"""Subject, unit, limit, period, burst and model of one quota in a token."""


def named(patterns: Iterable[str]) -> frozenset[str]:
    """The models of the world that patterns let be asked."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern.endswith("*"):
            found |= {model for model in WORLD if model.startswith(pattern[:-1])}
        else:
            found |= {model for model in WORLD if model == pattern}
    return frozenset(found)


@dataclass
class Role:
    scopes: frozenset[str]
    models: tuple[str, ...]


@dataclass
class Client:
    """A client; `secrets` are all that it ever had, the last one is good."""

    client_id: str
    tenant: str
    scopes: frozenset[str]
    roles: frozenset[str]
    models: frozenset[str]
    life: int
    secrets: list[str]
    disabled: bool = False


@dataclass
class Key:
    """An API key; `expires_at` in unix seconds or None."""

    key_id: str
    text: str
    client_id: str
    scopes: frozenset[str]
    models: frozenset[str]
    expires_at: float | None
    revoked: bool = False


@dataclass
class Token:
    """A token and what it must say as long as it lives."""

    text: str
    token_id: str
    client_id: str
    tenant: str
    scopes: frozenset[str]
    models: frozenset[str]
    quotas: frozenset[Rule]
    issued_at: int
    expires_at: int
    kid: str
    key_id: str = ""
    revoked: bool = False


@dataclass
class World:
    """Everything there is, by id; `signers` are key ids with the time from which they sign."""

    clients: dict[str, Client] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    quotas: dict[tuple[str, str, str, str], tuple[int, int, int]] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    signers: dict[str, float] = field(default_factory=dict)

    def scopes_of(self, client: Client) -> frozenset[str]:
        """Its own and those of its roles."""
        found = set(client.scopes)
        for name in client.roles:
            found |= BUILT_IN_SCOPES.get(name, frozenset())
            if name in self.roles:
                found |= self.roles[name].scopes
        return frozenset(found)

    def models_of(self, client: Client) -> frozenset[str]:
        """Its own and those of its roles."""
        found = set(client.models)
        for name in client.roles & self.roles.keys():
            found |= named(self.roles[name].models)
        return frozenset(found)

    def quotas_of(self, client: Client) -> frozenset[Rule]:
        """For each thing that is counted, the quota that is the most about this client."""
        preferred = {
            "client": [(client.tenant, client.client_id), (client.tenant, "*"), ("*", "*")],
            "tenant": [(client.tenant, ""), ("*", "")],
        }
        counted = {(unit, model) for unit, _, _, model in self.quotas}
        found = set()
        for subject, places in preferred.items():
            for unit, model in counted:
                for tenant, client_id in places:
                    quota = self.quotas.get((unit, tenant, client_id, model))
                    if quota is not None:
                        found.add((subject, unit, *quota, model))
                        break
        return frozenset(found)

    def is_good(self, key: Key, now: float) -> bool:
        """Whether a token may be had for it."""
        expired = key.expires_at is not None and key.expires_at <= now
        return not (key.revoked or expired or self.clients[key.client_id].disabled)

    def is_live(self, token: Token, now: float) -> bool:
        """Whether anybody may still accept the token."""
        key = self.keys.get(token.key_id)
        ended = token.revoked or self.clients[token.client_id].disabled
        return not (ended or (key and key.revoked) or token.expires_at + LEEWAY <= now)

    def signer(self, now: float) -> str:
        """The key that signs now."""
        active = {kid: since for kid, since in self.signers.items() if since <= now}
        return max(active, key=lambda kid: active[kid])

    def users_of(self, role: str) -> int:
        """How many clients have a role."""
        return sum(role in client.roles for client in self.clients.values())
