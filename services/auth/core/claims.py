"""What an access token says and how long it may live (RFC 9068). Signing is tokens.py's work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_TOKEN_LIFE = 600
"""Seconds. No token outlives this, whatever a client or a setting asks for."""

MIN_TOKEN_LIFE = 10
"""Seconds. Below this a token can be dead on arrival at a peer whose clock runs ahead."""

LEEWAY = 30
"""Seconds by which the clocks of two services may differ."""

AFTERLIFE = 2 * LEEWAY
"""Seconds past its end for which a token may still be accepted: a verifier's leeway, and its clock
being late by as much. Keys and revocations are kept for so long."""

MAX_TOKEN_BYTES = 4096
"""gRPC refuses metadata at random between 8 and 16 KB, so a token stays well below."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the use of a token: models, networks (CIDR), quota rules in their own form, the
    API key that it was issued for, and how its tenant's requests are audited and encrypted."""

    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    quotas: tuple[str, ...] = ()
    api_key_id: str = ""
    audit_detail: str = ""
    cipher: str = ""

    def as_json(self) -> Mapping[str, object]:
        """The claims, those left out that would say nothing."""
        claims: dict[str, object] = {
            "models": list(self.models),
            "networks": list(self.networks),
            "quota": list(self.quotas),
            "akid": self.api_key_id,
            "audit": self.audit_detail,
            "cipher": self.cipher,
        }
        return {name: value for name, value in claims.items() if value}


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """The content of one access token; times in whole unix seconds."""

    issuer: str
    audience: str
    client_id: str
    tenant: str
    scopes: tuple[str, ...]
    token_id: str
    issued_at: int
    expires_at: int
    limits: Limits

    def as_json(self) -> Mapping[str, object]:
        """The JWT payload: the required claims of RFC 9068 section 2.2, the tenant and limits."""
        return {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": self.client_id,
            "client_id": self.client_id,
            "tenant": self.tenant,
            "scope": " ".join(self.scopes),
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.token_id,
            **self.limits.as_json(),
        }


def claims_for(
    *,
    issuer: str,
    audience: str,
    client_id: str,
    tenant: str,
    scopes: Iterable[str],
    token_id: str,
    now: float,
    life: int,
    limits: Limits | None = None,
) -> TokenClaims:
    """Claims that begin now and live `life` seconds, cut to MAX_TOKEN_LIFE."""
    issued_at = int(now)
    return TokenClaims(
        issuer=issuer,
        audience=audience,
        client_id=client_id,
        tenant=tenant,
        scopes=tuple(sorted(set(scopes))),
        token_id=token_id,
        issued_at=issued_at,
        expires_at=issued_at + min(life, MAX_TOKEN_LIFE),
        limits=limits or Limits(),
    )
