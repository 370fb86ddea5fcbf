"""A forge that signs with the key of an auth service that runs, and has it publish a second one.

The service itself makes Ed25519 keys alone, and verifiers take ES256 as well: without a published
key of that kind an attack on ES256 would be refused for the lack of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec

from services.auth import keyring
from services.auth.tokens import jwks_json
from tests.support.auth import ISSUER, real_key
from tests.support.jwt_forge import Forge, es_jwk

ES_KID = "a-second-key"


@contextmanager
def publishing(es: ec.EllipticCurvePrivateKey) -> Iterator[None]:
    """Auth services that start within publish this key beside their own."""

    def with_second(own: Iterable[tuple[str, bytes]]) -> str:
        found = json.loads(jwks_json(own))
        return json.dumps({"keys": [*found["keys"], es_jwk(es, ES_KID)]})

    with mock.patch.object(keyring, "jwks_json", with_second):
        yield


def real_forge(data: Path, es: ec.EllipticCurvePrivateKey) -> Forge:
    """The forge of the auth service that keeps its data there: its first administrator's tokens."""
    kid, key = real_key(data)
    return Forge(kid, key, ES_KID, es, ISSUER)
