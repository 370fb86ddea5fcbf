"""Reads the claims of a token whose signature was checked as whom they name. Pure.

What is not understood refuses the token: a newer issuer may mean a limit by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from services.chassis.audit.detail import AuditDetail
from services.chassis.encryption.ciphers import CipherName
from services.chassis.peer_address import networks_of
from services.chassis.principal import Principal
from services.chassis.quotas.rules import read_rules

LEEWAY_S = 30
"""By so much the clocks of issuer and verifier may differ."""

MAX_LIFE_S = 600


def principal_of(claims: Mapping[str, Any], kid: str, now: float) -> Principal:
    """Who a token names at `now`, in unix seconds; `kid` names the key that signed it.

    Raises ValueError and TypeError for claims that are none, or not of this time.
    """
    _check_times(claims, now)
    (api_key_id,) = _texts([claims.get("akid", "")])
    return Principal(
        client_id=claims["client_id"],
        tenant=claims.get("tenant", ""),
        scopes=frozenset(claims.get("scope", "").split()),
        expires_at=float(claims["exp"]),
        token_id=claims["jti"],
        models=_texts(claims.get("models", [])),
        networks=networks_of(_texts(claims.get("networks", []))),
        quotas=read_rules(_texts(claims.get("quota", []))),
        api_key_id=api_key_id,
        audit_detail=AuditDetail(claims.get("audit", AuditDetail.METADATA)),
        cipher=CipherName(claims.get("cipher", CipherName.AES_256_GCM)),
        signing_key=kid,
    )


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    """Raises ValueError unless the token is alive at `now`, give or take the leeway."""
    times = [claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])]
    if not all(type(moment) in (int, float) and math.isfinite(moment) for moment in times):
        raise ValueError("a time is no number")
    issued_at, ends_at, begins_at = times
    if not 0 < ends_at - issued_at <= MAX_LIFE_S:
        raise ValueError("it lives too long, or never")
    if max(issued_at, begins_at) > now + LEEWAY_S or ends_at + LEEWAY_S <= now:
        raise ValueError("it is not this token's time")


def _texts(claim: Any) -> tuple[str, ...]:
    """A claim that is a list of texts. Raises ValueError."""
    if not isinstance(claim, list) or not all(isinstance(text, str) for text in claim):
        raise ValueError("a claim is no list of texts")
    return tuple(claim)
