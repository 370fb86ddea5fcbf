"""The attacks through a token's header: keys brought along, key ids, types, other forms."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import zlib
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.jwt_forge import (
    Attack,
    Draft,
    Forge,
    b64,
    by_ed25519,
    compact,
    ed_jwk,
    header,
    header_text,
    text,
    without_header,
)

Variants = dict[str, Attack]


def _brought_along(make: Callable[[Forge], dict[str, object]], *, by_stranger: bool) -> Attack:
    """A key, or where to find one, in the header. By the stranger's key it is the attack itself;
    by the real one it shows that the parameter is refused and not only passed over."""

    def change(d: Draft, f: Forge) -> None:
        d.header.update(make(f))
        if by_stranger:
            d.sign = by_ed25519(f.stranger)

    return Attack(change)


def _certificate(f: Forge) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anabranch")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, f.stranger.public_key(), 7, now, now)
    return builder.sign(f.stranger, None).public_bytes(Encoding.DER)


_BRINGS: dict[str, Callable[[Forge], dict[str, object]]] = {
    "jwk": lambda f: {"jwk": ed_jwk(f.stranger, f.ed_kid)},
    "jku": lambda f: {"jku": f.attacker_url},
    "jku on our host": lambda f: {"jku": f"{f.issuer}@{f.attacker_url.removeprefix('http://')}"},
    "x5u": lambda f: {"x5u": f.attacker_url},
    "x5c": lambda f: {"x5c": [base64.b64encode(_certificate(f)).decode()]},
    "x5t": lambda f: {"x5t#S256": b64(hashlib.sha256(_certificate(f)).digest())},
}


def _brings(name: str) -> Variants:
    return {
        "by the stranger's key": _brought_along(_BRINGS[name], by_stranger=True),
        "by the real key": _brought_along(_BRINGS[name], by_stranger=False),
    }


def _unencoded(d: Draft, f: Forge) -> None:
    """RFC 7797: the signature is over the payload as it is."""
    d.header |= {"b64": False, "crit": ["b64"]}
    head = b64(compact(d.header))
    plain = compact(d.claims)
    sign = b64(f.ed.sign(head.encode() + b"." + plain))
    d.text = f"{head}.{plain.decode()}.{sign}"


def _detached(d: Draft, f: Forge) -> None:
    d.header |= {"b64": False, "crit": ["b64"]}
    head = b64(compact(d.header))
    d.text = f"{head}..{b64(f.ed.sign(head.encode() + b'.' + compact(d.claims)))}"


def _bomb(d: Draft, _: Forge) -> None:
    """Two megabytes of spaces in two kilobytes."""
    d.header["zip"] = "DEF"
    d.claims_json = zlib.compress(compact(d.claims) + b" " * 2_000_000, 9)[2:-4]


def _nested(d: Draft, _: Forge) -> None:
    d.header["cty"] = "JWT"
    d.claims_json = d.base.encode()


def _encrypted(**more: object) -> Attack:
    def change(d: Draft, _: Forge) -> None:
        head = {**d.header, "alg": "dir", "enc": "A256GCM", **more}
        d.text = ".".join((b64(compact(head)), "", b64(b"i" * 12), b64(b"c" * 64), b64(b"t" * 16)))

    return Attack(change)


def _json_form(make: Callable[[str, str, str], object]) -> Attack:
    return text(lambda token: json.dumps(make(*token.split("."))))


def _twice(name: str, first: str) -> Attack:
    """A parameter twice, with a lie first: a reader that takes the first sees another token."""
    return header_text(lambda raw: b'{"%s":"%s",%s' % (name.encode(), first.encode(), raw[1:]))


def _forgotten(d: Draft, f: Forge) -> None:
    d.header["kid"] = "forgotten"
    d.sign = by_ed25519(f.forgotten)


_TYPES = (
    "JWT", "jwt", "id_token", "dpop+jwt", "logout+jwt", "secevent+jwt", "", "at+jwt ", "at+JWT;v=1",
    "at-jwt", "application/jwt", "text/at+jwt", ["at+jwt"], None, 1, True, {"at+jwt": 1},
)  # fmt: skip

HEADER_ATTACKS: dict[str, Variants] = {
    "key embedded as jwk": _brings("jwk"),
    "key behind jku": _brings("jku"),
    "key behind jku that begins as our issuer": _brings("jku on our host"),
    "key behind x5u": _brings("x5u"),
    "certificate embedded as x5c": _brings("x5c"),
    "certificate named by x5t": _brings("x5t"),
    "kid missing": {"": without_header("kid")},
    "kid of another type": {
        repr(kid): header(kid=kid) for kid in (None, 0, 1, True, [], ["Key-1"], {}, {"kid": "x"})
    },
    "kid empty": {"": header(kid="")},
    "kid unknown": {"": header(kid="nobody")},
    "kid as a path": {
        kid: header(kid=kid)
        for kid in ("../../../../dev/null", "/dev/null", "..\\..\\nul", "file:///dev/null", "CON:")
    },
    "kid as SQL": {
        kid: header(kid=kid)
        for kid in ("' OR '1'='1", "x' UNION SELECT 'secret' --", "1; DROP TABLE signing_keys")
    },
    "kid as a command or address": {
        kid: header(kid=kid)
        for kid in ("|/usr/bin/id", "$(id)", "http://127.0.0.1:1/k", "${jndi:x}")
    },
    "kid with a null byte": {
        "behind": Attack(lambda d, f: d.header.update(kid=f.ed_kid + "\0")),
        "and more": Attack(lambda d, f: d.header.update(kid=f.ed_kid + "\0.pem")),
    },
    "kid very long": {"": header(kid="k" * 2000)},
    "kid nearly ours": {
        "other case": Attack(lambda d, f: d.header.update(kid=f.ed_kid.swapcase())),
        "space behind": Attack(lambda d, f: d.header.update(kid=f.ed_kid + " ")),
        "first part": Attack(lambda d, f: d.header.update(kid=f.ed_kid[:-1])),
        "joiner": Attack(lambda d, f: d.header.update(kid=f.ed_kid + "\u200d")),
    },
    "kid of a forgotten key": {"": Attack(_forgotten)},
    "crit": {
        repr(crit): header(crit=crit, **({"x": 1} if crit == ["x"] else {}))
        for crit in (["x"], [], ["b64"], ["exp"], ["alg"], "exp", None, [1], {}, ["x", "x"], False)
    },
    "payload that is not encoded (RFC 7797)": {
        "in place": Attack(_unencoded), "detached": Attack(_detached),
        "b64 false alone": header(b64=False), "b64 true": header(b64=True),
    },
    "typ missing": {"": without_header("typ")},
    "typ of something else": {repr(typ): header(typ=typ) for typ in _TYPES},
    "token within a token": {"cty JWT": Attack(_nested), "cty alone": header(cty="JWT")},
    "encrypted token": {
        "dir": _encrypted(), "RSA-OAEP": _encrypted(alg="RSA-OAEP"),
        "PBES2 with a costly count": _encrypted(
            alg="PBES2-HS256+A128KW", p2c=2**31 - 1, p2s="AAAA"
        ),
        "ECDH-ES off the curve": _encrypted(
            alg="ECDH-ES", epk={"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}
        ),
    },
    "JSON serialisation": {
        "flattened": _json_form(lambda h, c, s: {"payload": c, "protected": h, "signature": s}),
        "general": _json_form(
            lambda h, c, s: {"payload": c, "signatures": [{"protected": h, "signature": s}]}
        ),
        "with compact parts": _json_form(lambda h, c, s: {f"{h}.{c}.{s}": ""}),
    },
    "decompression bomb": {"": Attack(_bomb), "zip alone": header(zip="DEF")},
    "header parameters twice": {
        "alg": _twice("alg", "none"), "kid": _twice("kid", "nobody"), "typ": _twice("typ", "JWT"),
        "alg, escaped": header_text(lambda raw: b'{"\\u0061lg":"none",' + raw[1:]),
        "the same value": header_text(lambda raw: raw[:-1] + b',"typ":"at+jwt"}'),
    },
    "unknown header parameter": {"": header(x=1)},
}  # fmt: skip
