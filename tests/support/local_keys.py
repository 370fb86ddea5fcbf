"""A key source that also issues tokens, for tests in which the auth service is not the subject."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.authn import KeySet
from services.chassis.quotas.rules import QuotaRule

ISSUER = "https://auth.anabranch.internal"


class LocalKeys:
    """One Ed25519 key: `fetch` hands out its public half, `token` signs with it."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        """The public half."""
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        return KeySet(json.dumps({"keys": [public | {"kid": "k", "use": "sig"}]}), max_age=300)

    def token(
        self,
        *scopes: str,
        client_id: str = "tester",
        tenant: str = "shop",
        life: int = 300,
        quotas: Sequence[QuotaRule] = (),
    ) -> str:
        """An access token that lives five minutes, or as many seconds as said."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": "anabranch",
            "sub": client_id,
            "client_id": client_id,
            "tenant": tenant,
            "scope": " ".join(scopes),
            "iat": now - 300 + life,
            "exp": now + life,
            "jti": uuid.uuid4().hex,
            "models": ["*"],
        }
        if quotas:
            claims["quota"] = [rule.as_text() for rule in quotas]
        headers = {"kid": "k", "typ": "at+jwt"}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers=headers)
