"""Makes tokens byte by byte, right or with one thing wrong: the tool of the attack catalogue.

It leaves out every check that a JWT library makes of what it writes. What to make is
jwt_attacks.py's.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.hashes import SHA256

Sign = Callable[[bytes], bytes]
ES256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def b64(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(part: str) -> bytes:
    """What such text stands for."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def compact(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def by_ed25519(key: ed25519.Ed25519PrivateKey) -> Sign:
    return key.sign


def by_ecdsa(key: ec.EllipticCurvePrivateKey, digest: Any = None) -> Sign:
    """Raw r and s, as JWS wants them."""
    size = (key.curve.key_size + 7) // 8

    def sign(data: bytes) -> bytes:
        der = key.sign(data, ec.ECDSA(digest or SHA256()))
        r, s = utils.decode_dss_signature(der)
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def ed_jwk(key: ed25519.Ed25519PrivateKey, kid: str) -> dict[str, str]:
    """The public half as a JWK."""
    x = b64(key.public_key().public_bytes_raw())
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig", "alg": "EdDSA"}


def es_jwk(key: ec.EllipticCurvePrivateKey, kid: str) -> dict[str, str]:
    """The public half as a JWK."""
    numbers = key.public_key().public_numbers()
    x, y = (b64(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    own = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    return {**own, "kid": kid, "use": "sig", "alg": "ES256"}


@dataclass
class Draft:
    """A token before it is signed. `header_json`, `claims_json` and `text` replace what would be
    made; `base` is the good token that the draft was a moment ago."""

    header: dict[str, Any]
    claims: dict[str, Any]
    sign: Sign
    base: str = ""
    header_json: bytes | None = None
    claims_json: bytes | None = None
    text: str | None = None

    def signed_part(self) -> str:
        """Header and claims as they are signed."""
        header = self.header_json if self.header_json is not None else compact(self.header)
        claims = self.claims_json if self.claims_json is not None else compact(self.claims)
        return f"{b64(header)}.{b64(claims)}"

    def token(self) -> str:
        """The token."""
        if self.text is not None:
            return self.text
        signed = self.signed_part()
        return f"{signed}.{b64(self.sign(signed.encode()))}"


@dataclass
class Forge:
    """The issuer's own keys and names, and a stranger's keys.

    `forgotten` is a key that the issuer no longer publishes. `attacker_url` is where a listener
    counts the connections that nobody may make.
    """

    ed_kid: str
    ed: ed25519.Ed25519PrivateKey
    es_kid: str
    es: ec.EllipticCurvePrivateKey
    issuer: str
    client_id: str = "admin"
    tenant: str = "operators"
    scope: str = "admin"
    audience: str = "anabranch"
    attacker_url: str = "http://127.0.0.1:1/keys"
    forgotten: ed25519.Ed25519PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)
    stranger: ed25519.Ed25519PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)

    def draft(self, alg: str = "EdDSA") -> Draft:
        """A good token of five minutes, not signed yet."""
        now = int(time.time())
        kid = self.ed_kid if alg == "EdDSA" else self.es_kid
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": self.client_id,
            "client_id": self.client_id,
            "tenant": self.tenant,
            "scope": self.scope,
            "iat": now,
            "exp": now + 300,
            "jti": uuid.uuid4().hex,
            "models": ["*"],
        }
        sign = by_ed25519(self.ed) if alg == "EdDSA" else by_ecdsa(self.es)
        return Draft({"alg": alg, "typ": "at+jwt", "kid": kid}, claims, sign)

    def good(self, alg: str = "EdDSA") -> str:
        """A good token."""
        return self.draft(alg).token()

    def jwks(self) -> str:
        """Both public halves, as the issuer publishes them."""
        return json.dumps({"keys": [ed_jwk(self.ed, self.ed_kid), es_jwk(self.es, self.es_kid)]})


Change = Callable[[Draft, Forge], Any]


@dataclass(frozen=True)
class Attack:
    """One change of a good token that is signed with `alg`."""

    change: Change
    alg: str = "EdDSA"

    def make(self, forge: Forge) -> tuple[str, str]:
        """A good token, and the same one after the change."""
        draft = forge.draft(self.alg)
        draft.base = control = draft.token()
        self.change(draft, forge)
        return control, draft.token()


def local_forge() -> Forge:
    """A forge with keys of its own, for tests in which no issuer runs."""
    return Forge(
        "Key-1",
        ed25519.Ed25519PrivateKey.generate(),
        "key-2",
        ec.generate_private_key(ec.SECP256R1()),
        "https://auth.anabranch.internal",
        client_id="tester",
        tenant="shop",
        scope="generate",
    )


def header(alg: str = "EdDSA", /, **changes: Any) -> Attack:
    """Other header parameters, signed properly."""
    return Attack(lambda d, _: d.header.update(changes), alg)


def without_header(name: str) -> Attack:
    return Attack(lambda d, _: d.header.pop(name))


def claims(**changes: Any) -> Attack:
    """Other claims, signed properly by the real key."""
    return Attack(lambda d, _: d.claims.update(changes))


def without(name: str) -> Attack:
    """A claim that is missing."""
    return Attack(lambda d, _: d.claims.pop(name))


def moved(**seconds: int) -> Attack:
    """Times that are off by so many seconds; `nbf` counts from `iat`."""

    def change(d: Draft, _: Forge) -> None:
        start = {"nbf": d.claims["iat"], **d.claims}
        d.claims.update({name: start[name] + by for name, by in seconds.items()})

    return Attack(change)


def text(change: Callable[[str], str], alg: str = "EdDSA") -> Attack:
    """A good token's text, changed after it was signed."""

    def apply(d: Draft, _: Forge) -> None:
        d.text = change(d.base)

    return Attack(apply, alg)


def signature(change: Callable[[bytes], bytes], alg: str = "EdDSA") -> Attack:
    """Another signature over the same header and claims."""

    def apply(token: str) -> str:
        signed, _, old = token.rpartition(".")
        return f"{signed}.{b64(change(unb64(old)))}"

    return text(apply, alg)


def claims_text(change: Callable[[bytes], bytes]) -> Attack:
    """Claims of other bytes, signed properly by the real key."""

    def apply(d: Draft, _: Forge) -> None:
        d.claims_json = change(compact(d.claims))

    return Attack(apply)


def header_text(change: Callable[[bytes], bytes]) -> Attack:
    """A header of other bytes, signed properly by the real key."""

    def apply(d: Draft, _: Forge) -> None:
        d.header_json = change(compact(d.header))

    return Attack(apply)
