"""Verifies access tokens locally and says who calls; authorises the dispatched method.

Tokens are JWTs of RFC 9068 signed with EdDSA or ES256; the keys come from a
`KeySource` that a background loop polls, so no request waits for the auth
service. It issues nothing and stores nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import ipaddress
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from anabranch.v1 import errors_pb2
from services.chassis.access import Access
from services.chassis.audit.detail import AuditDetail
from services.chassis.errors import Fault
from services.chassis.quotas.rules import QuotaRule, read_rules

_log = logging.getLogger(__name__)

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

LEEWAY_S = 30
MAX_LIFE_S = 600
STALE_LIMIT_S = 3600.0
REFRESH_ON_UNKNOWN_KEY_S = 30.0
MAX_TOKEN_BYTES = 4096
_REQUIRED = ("exp", "iat", "sub", "client_id", "jti", "iss", "aud")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, as a verified token says. `expires_at` is in Unix seconds.

    `models` are the patterns of models that it may ask; none means no model. `networks` are those
    that it may call from; none means from everywhere. `quotas` hold for its requests.
    `api_key_id` names the key that the token was issued for, if one was. `audit_detail` and
    `cipher` say how its tenant wants its requests written down (audit/, encryption/).
    """

    client_id: str
    tenant: str
    scopes: frozenset[str]
    expires_at: float
    token_id: str
    models: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    quotas: tuple[QuotaRule, ...] = ()
    api_key_id: str = ""
    audit_detail: AuditDetail = AuditDetail.METADATA
    cipher: str = "AES_256_GCM"

    def has(self, scope: str) -> bool:
        """Whether the token carries this scope."""
        return scope in self.scopes


_current: contextvars.ContextVar[Principal | None] = contextvars.ContextVar(
    "anabranch_principal", default=None
)


def current_principal() -> Principal:
    """The caller of the RPC being handled.

    Raises Fault CREDENTIAL_REJECTED in a public RPC, where nobody is known.
    """
    principal = _current.get()
    if principal is None:
        raise rejected()
    return principal


def set_current_principal(principal: Principal | None) -> None:
    """Called by the authentication guard, once for each RPC."""
    _current.set(principal)


def rejected() -> Fault:
    """One text for every bad credential, so that nothing can be learnt from it."""
    return Fault(
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED,
        "no valid credential: send metadata 'authorization: Bearer <token>' with a live token",
    )


def denied(needed: frozenset[str]) -> Fault:
    """The credential is good, but carries none of the scopes that open the RPC."""
    wanted = " or ".join(sorted(needed)) or "another identity"
    return Fault(
        errors_pb2.ERROR_REASON_ACCESS_DENIED, f"the credential does not allow this: needs {wanted}"
    )


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a verifier must know: JWKS as JSON text, and what was revoked."""

    jwks_json: str
    max_age: float
    revoked_token_ids: frozenset[str] = frozenset()
    disabled_client_ids: frozenset[str] = frozenset()


class KeySource(Protocol):
    """Where verification keys come from."""

    async def fetch(self) -> KeySet:
        """The keys now. Raises Fault when they cannot be had."""


def _public_keys(jwks_json: str) -> dict[str, tuple[str, Any]]:
    """kid -> (algorithm, key), for the two key types that are allowed.

    The algorithm is bound to the key's type here, never taken from a token.
    """
    keys: dict[str, tuple[str, Any]] = {}
    for entry in json.loads(jwks_json).get("keys", []):
        kid = entry.get("kid")
        kind = (entry.get("kty"), entry.get("crv"))
        if not kid or entry.get("use", "sig") != "sig":
            continue
        if kind == ("OKP", "Ed25519"):
            key = jwt.PyJWK.from_dict(entry, algorithm="EdDSA").key
            if isinstance(key, Ed25519PublicKey):
                keys[kid] = ("EdDSA", key)
        elif kind == ("EC", "P-256"):
            key = jwt.PyJWK.from_dict(entry, algorithm="ES256").key
            if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
                keys[kid] = ("ES256", key)
    return keys


class Verifier:
    """Turns a bearer token into a Principal, or refuses it.

    Results are cached by the SHA-256 of the whole token until it expires. Keys
    stay usable for an hour after the last successful fetch, so existing tokens
    survive an outage of the auth service.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        issuer: str,
        audience: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        cache_size: int = 10_000,
    ) -> None:
        self._source = source
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._monotonic = monotonic
        self._cache: OrderedDict[bytes, Principal] = OrderedDict()
        self._cache_size = cache_size
        self._keys: dict[str, tuple[str, Any]] = {}
        self._revoked: frozenset[str] = frozenset()
        self._disabled: frozenset[str] = frozenset()
        self._fetched_at: float | None = None
        self._forced_at = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> Principal:
        """The principal of a live token.

        Raises Fault CREDENTIAL_REJECTED for any bad one, and
        DEPENDENCY_UNAVAILABLE while no usable keys have ever been fetched.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise rejected()
        if self._fetched_at is None:
            # A process that has just started may be called before its first poll.
            try:
                await self._refresh_for_unknown_key()
            except Fault as exc:
                raise self._no_keys() from exc
        if self._fetched_at is None or self._monotonic() - self._fetched_at > STALE_LIMIT_S:
            raise self._no_keys()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        principal = self._cache.get(digest)
        if principal is None:
            principal = await self._decode(token)
            self._remember(digest, principal)
        self.check_live(principal)
        return principal

    def check_live(self, principal: Principal) -> None:
        """Raises Fault CREDENTIAL_REJECTED when a known principal is expired or revoked."""
        if (
            principal.expires_at + LEEWAY_S <= self._clock()
            or principal.token_id in self._revoked
            or principal.client_id in self._disabled
        ):
            raise rejected()

    async def keep_fresh(self) -> None:
        """Polls the keys until cancelled. Run it in the service's task group."""
        failures = 0
        while True:
            try:
                wait = await self._refresh()
                failures = 0
            except Fault as fault:
                failures += 1
                wait = min(0.25 * 2**failures, 10.0)
                level = logging.WARNING if failures in (3, 10) else logging.DEBUG
                _log.log(
                    level,
                    "verification keys could not be refreshed",
                    extra={"cause": fault.message, "failures": failures},
                )
            await asyncio.sleep(wait)

    def _no_keys(self) -> Fault:
        return Fault(
            errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            "credentials cannot be checked: the auth service has not been reached",
            retry_after=1.0,
        )

    async def _refresh(self) -> float:
        async with self._lock:
            found = await self._source.fetch()
            try:
                self._keys = _public_keys(found.jwks_json)
            except (ValueError, TypeError, AttributeError, jwt.PyJWTError) as exc:
                raise Fault(
                    errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                    "the auth service sent keys that cannot be read",
                ) from exc
            self._revoked = found.revoked_token_ids
            self._disabled = found.disabled_client_ids
            self._fetched_at = self._monotonic()
            return max(found.max_age, 0.5)

    async def _refresh_for_unknown_key(self) -> None:
        """At most one forced refresh in 30 s, whoever asks: an attacker names many keys."""
        now = self._monotonic()
        pause = 0.5 if self._fetched_at is None else REFRESH_ON_UNKNOWN_KEY_S
        if now - self._forced_at < pause:
            async with self._lock:  # one that is under way may bring what is looked for
                return
        self._forced_at = now
        await self._refresh()

    async def _decode(self, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as exc:
            raise rejected() from exc
        if str(header.get("typ", "")).lower() not in ("at+jwt", "application/at+jwt"):
            raise rejected()
        if "crit" in header:
            raise rejected()
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise rejected()
        if kid not in self._keys:
            try:
                await self._refresh_for_unknown_key()
            except Fault as exc:
                raise rejected() from exc
        found = self._keys.get(kid)
        if found is None:
            raise rejected()
        algorithm, key = found
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": list(_REQUIRED)},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as exc:
            raise rejected() from exc
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        life = claims["exp"] - claims["iat"]
        texts = [claims[k] for k in ("client_id", "jti", "sub")] + [claims.get("tenant", "")]
        if not 0 < life <= MAX_LIFE_S or not all(isinstance(t, str) for t in texts):
            raise rejected()
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise rejected()
        try:
            quotas = read_rules(claims.get("quota", ()))
        except (ValueError, TypeError, AttributeError) as exc:
            raise rejected() from exc
        return Principal(
            client_id=claims["client_id"],
            tenant=claims.get("tenant", ""),
            scopes=frozenset(scope.split()),
            expires_at=float(claims["exp"]),
            token_id=claims["jti"],
            quotas=quotas,
        )

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._cache[digest] = principal
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)


def bearer_token(authorization: str) -> str:
    """The token of an `authorization` value. Raises Fault CREDENTIAL_REJECTED without one."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise rejected()
    return token.strip()


async def authenticate(verifier: Verifier, access: Access | None, authorization: str) -> (
    Principal | None
):  # fmt: skip
    """Checks a credential against a method's rule; None for a public method.

    Raises Fault CREDENTIAL_REJECTED or ACCESS_DENIED. A method without a rule is denied.
    """
    if access is not None and access.public:
        return None
    principal = await verifier.verify(bearer_token(authorization))
    if access is None or (access.any_scope and not access.any_scope & principal.scopes):
        raise denied(access.any_scope if access else frozenset())
    return principal
