"""Verifies access tokens locally and says who calls; authorises the dispatched method.

Tokens are JWTs of RFC 9068 signed with EdDSA or ES256; the keys come from a
`KeySource` that a background loop follows, so no request waits for the auth
service, but for the first one of an API key. It issues nothing and stores nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from anabranch.api_keys import looks_like_key
from anabranch.v1 import errors_pb2
from services.chassis.access import Access
from services.chassis.api_key_exchange import ApiKeyTokens, KeyExchange
from services.chassis.errors import Fault
from services.chassis.principal import (
    Address,
    Principal,
    denied,
    rejected,
    set_current_caller,
)
from services.chassis.token_claims import LEEWAY_S, principal_of
from services.chassis.token_parsing import MAX_TOKEN_BYTES, MalformedToken, parse_token

_log = logging.getLogger(__name__)

STALE_LIMIT_S = 3600.0
LONG_POLL_S = 20.0
"""The auth service answers at once when something was revoked, else after so long."""
REFRESH_ON_UNKNOWN_KEY_S = 30.0
# Of revocations that come close together, one fetch learns several.
_PAUSE_S = 0.02
# An API key's next token is asked for so long before the present one ends, or in the last quarter
# of a short one's life: sooner, and each request would ask for one.
_EXCHANGE_AHEAD_S = 60.0
_EXCHANGE_AHEAD_SHARE = 0.25
_RENEWAL_PATIENCE_S = 0.5
_RENEWAL_PAUSE_S = 1.0
_REQUIRED = ("exp", "iat", "sub", "client_id", "jti", "iss", "aud")


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a verifier must know: JWKS as JSON text, and what was revoked."""

    jwks_json: str
    max_age: float
    revoked_token_ids: frozenset[str] = frozenset()
    disabled_client_ids: frozenset[str] = frozenset()
    revoked_api_key_ids: frozenset[str] = frozenset()
    version: str = ""


class KeySource(Protocol):
    """Where verification keys come from."""

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        """The keys now; with `wait`, once they are no longer `known_version`, or after so many
        seconds. Raises Fault when they cannot be had."""


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

    Results are cached by the SHA-256 of the whole credential until it expires. Keys
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
        exchange: KeyExchange | None = None,
    ) -> None:
        """`clock` returns unix seconds. Without an `exchange` no API key is accepted."""
        self._source = source
        self._api_keys = None if exchange is None else ApiKeyTokens(exchange, monotonic)
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._monotonic = monotonic
        self._cache: OrderedDict[bytes, Principal] = OrderedDict()
        self._cache_size = cache_size
        self._renew_at: dict[bytes, float] = {}
        self._keys: dict[str, tuple[str, Any]] = {}
        self._revoked: frozenset[str] = frozenset()
        self._disabled: frozenset[str] = frozenset()
        self._revoked_keys: frozenset[str] = frozenset()
        self._version = ""
        self._fetched_at: float | None = None
        self._forced_at = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, credential: str) -> Principal:
        """The principal of a live token, or of a good API key.

        Raises Fault CREDENTIAL_REJECTED for any bad one, and
        DEPENDENCY_UNAVAILABLE while no usable keys have ever been fetched, or
        an API key that is new here cannot be exchanged.
        """
        if len(credential) > MAX_TOKEN_BYTES or not credential.isascii():
            raise rejected()
        if self._fetched_at is None:
            # A process that has just started may be called before its first poll.
            try:
                await self._refresh_for_unknown_key()
            except Fault as exc:
                raise self._no_keys() from exc
        if self._fetched_at is None or self._monotonic() - self._fetched_at > STALE_LIMIT_S:
            raise self._no_keys()
        digest = hashlib.sha256(credential.encode()).digest()
        principal = self._cache.get(digest)
        if looks_like_key(credential):
            principal = await self._of_api_key(credential, digest, principal)
        elif principal is None:
            principal = await self._decode(credential)
            self._remember(digest, principal)
        self.check_live(principal)
        return principal

    def check_live(self, principal: Principal) -> None:
        """Raises Fault CREDENTIAL_REJECTED when a known principal is expired or revoked, or the key
        that vouched for it is gone."""
        if (
            principal.signing_key not in self._keys
            or principal.expires_at + LEEWAY_S <= self._clock()
            or principal.token_id in self._revoked
            or principal.client_id in self._disabled
            or (principal.api_key_id and principal.api_key_id in self._revoked_keys)
        ):
            raise rejected()

    async def keep_fresh(self) -> None:
        """Follows the keys until cancelled. Run it in the service's task group."""
        failures = 0
        while True:
            try:
                wait = await self._follow()
                failures = 0
            except Fault as fault:
                failures += 1
                wait = random.uniform(0.5, 1.0) * min(0.25 * 2**failures, 1.0)  # noqa: S311
                level = logging.WARNING if failures in (3, 10) else logging.DEBUG
                _log.log(
                    level,
                    "verification keys could not be refreshed",
                    extra={"cause": fault.message, "failures": failures},
                )
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Gives up what is under way."""
        if self._api_keys is not None:
            await self._api_keys.close()

    async def _of_api_key(self, api_key: str, digest: bytes, known: Principal | None) -> Principal:
        """The principal of the key's present token, which is replaced before it ends."""
        if self._api_keys is None:
            raise rejected()
        now = self._clock()
        alive = known is not None and now < known.expires_at + LEEWAY_S
        if known is not None and alive and now < self._renew_at[digest]:
            return known
        if alive:
            # One request in a second asks for the next token then, and none for long.
            self._renew_at[digest] = now + _RENEWAL_PAUSE_S
        try:
            async with asyncio.timeout(_RENEWAL_PATIENCE_S if alive else None):
                token = await self._api_keys.token(api_key, digest)
        except (Fault, TimeoutError) as failure:
            if known is not None and alive and not _is_rejection(failure):
                return known
            self._forget(digest)
            raise
        principal = await self._decode(token)
        self._remember(digest, principal)
        life = principal.expires_at - self._clock()
        ahead = min(_EXCHANGE_AHEAD_S, life * _EXCHANGE_AHEAD_SHARE)
        self._renew_at[digest] = principal.expires_at - ahead
        return principal

    def _no_keys(self) -> Fault:
        return Fault(
            errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            "credentials cannot be checked: the auth service has not been reached",
            retry_after=1.0,
        )

    async def _follow(self) -> float:
        """Learns the next key set; returns how long to wait before asking again, in seconds."""
        if not self._version:
            return await self._refresh()
        asked, known = self._monotonic(), self._version
        # Not under the lock: it takes long, and who needs a key now does not wait for it.
        found = await self._source.fetch(known, LONG_POLL_S)
        self._take(found)
        if found.version != known:
            return _PAUSE_S
        # An answer that came early, with nothing new: too many ask there to be kept waiting.
        return 0.0 if self._monotonic() - asked > found.max_age else max(found.max_age, 0.5)

    async def _refresh(self) -> float:
        async with self._lock:
            found = await self._source.fetch()
            self._take(found)
            return 0.0 if found.version else max(found.max_age, 0.5)

    def _take(self, found: KeySet) -> None:
        try:
            keys = _public_keys(found.jwks_json)
        except (ValueError, TypeError, AttributeError, jwt.PyJWTError) as exc:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the auth service sent keys that cannot be read",
            ) from exc
        gone = {kid for kid, known in self._keys.items() if keys.get(kid) != known}
        if gone:
            # Tokens of a key that is gone are no longer believed; of an API key, the next is asked.
            for digest, principal in tuple(self._cache.items()):
                if principal.signing_key in gone:
                    self._forget(digest)
        self._keys = keys
        self._revoked = found.revoked_token_ids
        self._disabled = found.disabled_client_ids
        self._revoked_keys = found.revoked_api_key_ids
        self._version = found.version
        self._fetched_at = self._monotonic()

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
            header = parse_token(token).header
        except MalformedToken as exc:
            raise rejected() from exc
        if header["typ"].lower() not in ("at+jwt", "application/at+jwt"):
            raise rejected()
        kid = header["kid"]
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
                # Its times are checked below: by our clock, which need not be the machine's.
                options={
                    "require": list(_REQUIRED),
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "strict_aud": True,
                },
            )
            return principal_of(claims, kid, self._clock())
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as exc:
            raise rejected() from exc

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._cache[digest] = principal
        if len(self._cache) > self._cache_size:
            self._forget(next(iter(self._cache)))

    def _forget(self, digest: bytes) -> None:
        self._cache.pop(digest, None)
        self._renew_at.pop(digest, None)


def _is_rejection(failure: Exception) -> bool:
    return (
        isinstance(failure, Fault) and failure.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
    )


def bearer_token(authorization: str) -> str:
    """The token of an `authorization` value. Raises Fault CREDENTIAL_REJECTED without one."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise rejected()
    return token


async def authenticate(
    verifier: Verifier, access: Access | None, authorization: str, address: Address | None
) -> Principal | None:
    """Checks a credential and where it comes from against a method's rule; None for a public one.

    Raises Fault CREDENTIAL_REJECTED or ACCESS_DENIED. A method without a rule is denied.
    """
    if access is not None and access.public:
        return None
    principal = await verifier.verify(bearer_token(authorization))
    # Before anything is refused: whoever notes the refusal can say who it was.
    set_current_caller(principal, address)
    if access is None or (access.scopes and not access.scopes & principal.scopes):
        raise denied(access.scopes if access else frozenset())
    principal.check_address(address)
    return principal
