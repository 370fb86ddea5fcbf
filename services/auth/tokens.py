"""Signs access tokens as JWTs (EdDSA) and writes public keys as a JWK Set.

Which key signs when is core/rotation.py's rule and keyring.py's work; checking
a token is the chassis's.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.core.claims import MAX_TOKEN_BYTES, TokenClaims

ALGORITHM = "EdDSA"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - the media type of RFC 9068, not a credential


class TokenTooLarge(Exception):
    """The signed token would not fit into metadata."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key and the unix time from which it signs."""

    kid: str
    active_at: float
    private_key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_bytes(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()


def new_signing_key(active_at: float) -> SigningKey:
    private_key = Ed25519PrivateKey.generate()
    return SigningKey(_kid(private_key.public_key().public_bytes_raw()), active_at, private_key)


def signing_key(kid: str, active_at: float, private_bytes: bytes) -> SigningKey:
    """A key from its 32 private bytes. Raises ValueError when the kid is not this key's."""
    key = SigningKey(kid, active_at, Ed25519PrivateKey.from_private_bytes(private_bytes))
    if _kid(key.public_bytes) != kid:
        raise ValueError(f"signing key {kid} does not match its id")
    return key


def sign(claims: TokenClaims, key: SigningKey) -> str:
    """The compact JWT. Raises TokenTooLarge."""
    token = jwt.encode(
        dict(claims.as_json()),
        key.private_key,
        algorithm=ALGORITHM,
        headers={"typ": TOKEN_TYPE, "kid": key.kid},
    )
    if len(token) >= MAX_TOKEN_BYTES:
        raise TokenTooLarge
    return token


def issued_at(verified_token: str) -> int:
    """The `iat` of a token whose signature the caller has already checked."""
    return int(jwt.decode(verified_token, options={"verify_signature": False})["iat"])


def jwks_json(public_keys: Iterable[tuple[str, bytes, float]]) -> str:
    """A JWK Set (RFC 7517, RFC 8037) of (kid, 32 public bytes, unix time) triples.

    `iat`, a member of our own, says when the key was made: operators ask how old keys are.
    """
    keys = [
        {
            **_thumbprint_members(public),
            "use": "sig",
            "alg": ALGORITHM,
            "kid": kid,
            "iat": int(created_at),
        }
        for kid, public, created_at in public_keys
    ]
    return json.dumps({"keys": keys}, separators=(",", ":"))


def _kid(public: bytes) -> str:
    """The JWK thumbprint of RFC 7638: SHA-256 of the required members in lexical order."""
    members = json.dumps(_thumbprint_members(public), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(members.encode()).digest())


def _thumbprint_members(public: bytes) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(public)}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
