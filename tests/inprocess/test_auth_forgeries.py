"""Forged tokens against the running auth service: none is active, none opens an RPC."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from anabranch.v1 import auth_pb2 as pb
from tests.support.auth import ISSUER, Front, auth, basic, bearer, real_key, refused


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


def forged(front: Front, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> str:
    """A token signed with the service's real key, after `change` of header and claims."""
    kid, private = real_key(front.data)
    now = int(time.time())
    header: dict[str, Any] = {"typ": "at+jwt", "kid": kid}
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": "anabranch",
        "sub": "admin",
        "client_id": "admin",
        "tenant": "operators",
        "scope": "admin",
        "iat": now,
        "exp": now + 300,
        "jti": "forged",
    }
    change(header, claims)
    return jwt.encode(claims, private, algorithm="EdDSA", headers=header)


def part(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(front: Front) -> str:
    _, claims, _ = forged(front, lambda h, c: None).split(".")
    kid, _ = real_key(front.data)
    return f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': kid})}.{claims}."


def hmac_with(front: Front, public: Callable[[Ed25519PrivateKey], bytes]) -> str:
    """The classic confusion: the public key, which everybody has, used as an HMAC secret."""
    _, claims, _ = forged(front, lambda h, c: None).split(".")
    kid, private = real_key(front.data)
    signed = f"{part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': kid})}.{claims}"
    mac = hmac.new(public(private), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{part(mac)}"


def by_own_key(front: Front, **header: Any) -> str:
    stranger = Ed25519PrivateKey.generate()
    kid, _ = real_key(front.data)
    _, claims, _ = forged(front, lambda h, c: None).split(".")
    body = json.loads(base64.urlsafe_b64decode(claims + "=="))
    public = jwt.algorithms.OKPAlgorithm.to_jwk(stranger.public_key(), as_dict=True)
    filled = {k: (public if v == "own" else v) for k, v in header.items()}
    return jwt.encode(
        body, stranger, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid, **filled}
    )


def tampered(front: Front) -> str:
    head, claims, signature = forged(front, lambda h, c: c.update(scope="generate")).split(".")
    body = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{head}.{part({**body, 'scope': 'admin'})}.{signature}"


def raw_public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def pem_public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


FORGERIES: dict[str, Callable[[Front], str]] = {
    "alg none": unsigned,
    "hmac with the raw public key": lambda f: hmac_with(f, raw_public),
    "hmac with the public key as PEM": lambda f: hmac_with(f, pem_public),
    "another key under our kid": by_own_key,
    "another key embedded as jwk": lambda f: by_own_key(f, jwk="own"),
    "another key behind jku": lambda f: by_own_key(f, jku="http://127.0.0.1:1/jwks"),
    "tampered claims": tampered,
    "expired": lambda f: forged(f, lambda h, c: c.update(iat=c["iat"] - 900, exp=c["iat"] - 600)),
    "from the future": lambda f: forged(
        f, lambda h, c: c.update(iat=c["iat"] + 600, exp=c["iat"] + 900)
    ),
    "lives too long": lambda f: forged(f, lambda h, c: c.update(exp=c["iat"] + 86_400)),
    "wrong issuer": lambda f: forged(f, lambda h, c: c.update(iss=ISSUER + "/")),
    "wrong audience": lambda f: forged(f, lambda h, c: c.update(aud="other")),
    "unknown crit": lambda f: forged(f, lambda h, c: h.update(crit=["x"], x=1)),
    "plain JWT type": lambda f: forged(f, lambda h, c: h.update(typ="JWT")),
    "unknown kid": lambda f: forged(f, lambda h, c: h.update(kid="nobody")),
    **{
        f"without {name}": lambda f, name=name: forged(f, lambda h, c: c.pop(name))  # type: ignore[misc]
        for name in ("iss", "aud", "exp", "iat", "sub", "client_id", "jti")
    },
}


async def test_the_forging_tools_can_make_a_good_token(front: Front) -> None:
    assert await front.active(forged(front, lambda h, c: None))


async def test_no_forgery_is_active_anywhere_or_opens_an_rpc(front: Front) -> None:
    async with aiohttp.ClientSession(headers=basic("admin", front.secret)) as http:
        for name, forge in FORGERIES.items():
            token = forge(front)
            assert not await front.active(token), name
            answer = await http.post(f"{front.http}/oauth/introspect", data={"token": token})
            assert await answer.json() == {"active": False}, name
            fault = await refused(
                front.stub.ListClients(pb.ListClientsRequest(), metadata=bearer(token))
            )
            assert fault.code == grpc.StatusCode.UNAUTHENTICATED, name
