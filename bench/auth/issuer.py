"""A source of keys, tokens and exchanged API keys in this process, for verifiers on their own."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.core.claims import Limits, claims_for
from services.auth.tokens import TOKEN_TYPE
from services.chassis.authn import KeySet

ISSUER, AUDIENCE = "https://auth.anabranch.internal", "anabranch"
ALGORITHMS = ("EdDSA", "ES256")
_LIFE_S = 600


class Issuer:
    """One key of each algorithm; a KeySource and a KeyExchange of the chassis."""

    def __init__(self) -> None:
        self._keys: dict[str, Any] = {
            "EdDSA": Ed25519PrivateKey.generate(),
            "ES256": generate_private_key(SECP256R1()),
        }

    def public(self, algorithm: str) -> Any:
        """The key that verifies."""
        return self._keys[algorithm].public_key()

    def token(self, algorithm: str = "EdDSA", *, api_key_id: str = "") -> str:
        """A token such as the auth service issues, with an id of its own."""
        claims = claims_for(
            issuer=ISSUER,
            audience=AUDIENCE,
            client_id="bench",
            tenant="bench",
            scopes=("generate",),
            token_id=secrets.token_urlsafe(16),
            now=time.time(),
            life=_LIFE_S,
            limits=Limits(models=("*",), api_key_id=api_key_id, audit_detail="metadata"),
        )
        headers = {"typ": TOKEN_TYPE, "kid": algorithm}
        return jwt.encode(
            dict(claims.as_json()), self._keys[algorithm], algorithm=algorithm, headers=headers
        )

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        """See KeySource."""
        writers: dict[str, Any] = {
            "EdDSA": jwt.algorithms.OKPAlgorithm,
            "ES256": jwt.algorithms.ECAlgorithm,
        }
        entries = [
            {**json.loads(writers[name].to_jwk(self.public(name))), "kid": name, "use": "sig"}
            for name in ALGORITHMS
        ]
        return KeySet(json.dumps({"keys": entries}), max_age=300.0)

    async def exchange(self, api_key: str) -> str:
        """See KeyExchange."""
        return self.token(api_key_id="bench")
