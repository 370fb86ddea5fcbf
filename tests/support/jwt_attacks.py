"""The catalogue of attacks with JSON Web Tokens: class -> variant -> how to make the token.

Each is a good token with one thing changed, so a suite can show that the good one is let in and
the other is not. This file has the attacks on signatures, keys and header parameters; those on
claims and on the form of the text are beside it. What needs a revocation, a clock or a second
request is no token, and is tested where the verifier is.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.jwt_attacks_claims import CLAIM_ATTACKS
from tests.support.jwt_attacks_form import FORM_ATTACKS
from tests.support.jwt_forge import (
    ED25519_ORDER,
    ES256_ORDER,
    Attack,
    Draft,
    Forge,
    b64,
    by_ecdsa,
    by_ed25519,
    claims,
    compact,
    ed_jwk,
    header,
    header_text,
    moved,
    signature,
    text,
    without,
    without_header,
)

Variants = dict[str, Attack]


def _none(alg: object, *, keep_signature: bool = False) -> Attack:
    def change(d: Draft, _: Forge) -> None:
        d.header["alg"] = alg
        d.text = f"{d.signed_part()}.{d.base.rpartition('.')[2] if keep_signature else ''}"

    return Attack(change)


def _public(form: str) -> Callable[[Forge], bytes]:
    """The public key, which everybody has, as somebody might have used it for a secret."""

    def secret(f: Forge) -> bytes:
        public = f.ed.public_key()
        info = PublicFormat.SubjectPublicKeyInfo
        return {
            "raw": public.public_bytes_raw(),
            "PEM": public.public_bytes(Encoding.PEM, info),
            "PEM without its last newline": public.public_bytes(Encoding.PEM, info).strip(),
            "DER": public.public_bytes(Encoding.DER, info),
            "OpenSSH": public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
            "JWK": compact(ed_jwk(f.ed, f.ed_kid)),
            "JWK Set": f.jwks().encode(),
            "base64": base64.b64encode(public.public_bytes_raw()),
            "base64url": b64(public.public_bytes_raw()).encode(),
            "nothing": b"",
        }[form]

    return secret


def _hmac(alg: str, form: str) -> Attack:
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[alg]

    def change(d: Draft, f: Forge) -> None:
        d.header["alg"] = alg
        d.sign = lambda data: hmac.digest(_public(form)(f), data, digest)

    return Attack(change)


@functools.cache
def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _own_signature(alg: str, data: bytes) -> bytes:
    """A signature of another algorithm, by a key of the attacker's."""
    curves = {"ES384": ec.SECP384R1(), "ES512": ec.SECP521R1(), "ES256K": ec.SECP256K1()}
    if alg in curves:
        digest = {"ES384": hashes.SHA384(), "ES512": hashes.SHA512()}.get(alg)
        return by_ecdsa(ec.generate_private_key(curves[alg]), digest)(data)
    if alg.startswith("PS"):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        return _rsa().sign(data, pss, hashes.SHA256())
    return _rsa().sign(data, padding.PKCS1v15(), hashes.SHA256())


def _self_signed(alg: str) -> Attack:
    def change(d: Draft, _: Forge) -> None:
        d.header["alg"] = alg
        d.sign = lambda data: _own_signature(alg, data)

    return Attack(change)


def _by(sign: Callable[[Forge], Callable[[bytes], bytes]], alg: str = "EdDSA") -> Attack:
    def change(d: Draft, f: Forge) -> None:
        d.sign = sign(f)

    return Attack(change, alg)


def _other_key(alg: str, *, kid: bool = False, name: str = "", sign: bool = False) -> Attack:
    """Takes over one or more of key id, algorithm's name and signing key from the other key."""

    def change(d: Draft, f: Forge) -> None:
        if kid:
            d.header["kid"] = f.es_kid if alg == "EdDSA" else f.ed_kid
        if name:
            d.header["alg"] = name
        if sign:
            d.sign = by_ecdsa(f.es) if alg == "EdDSA" else by_ed25519(f.ed)

    return Attack(change, alg)


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


def _flipped(bit: int) -> Callable[[bytes], bytes]:
    def change(old: bytes) -> bytes:
        new = bytearray(old)
        new[bit // 8] ^= 1 << bit % 8
        return bytes(new)

    return change


def _plus_order(old: bytes) -> bytes:
    """S + L: the same point, in the second spelling that a careless verifier takes."""
    s = int.from_bytes(old[32:], "little") + ED25519_ORDER
    return old[:32] + s.to_bytes(32, "little")


def _pair(r: int, s: int) -> Callable[[bytes], bytes]:
    return lambda _: r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _der(old: bytes) -> bytes:
    r, s = (int.from_bytes(half, "big") for half in (old[:32], old[32:]))
    return utils.encode_dss_signature(r, s)


def high_s(old: bytes) -> bytes:
    """The other signature of ES256 over the same: as valid as the first (see ACCEPTED)."""
    s = int.from_bytes(old[32:], "big")
    return old[:32] + (ES256_ORDER - s).to_bytes(32, "big")


def _stray_bits(token: str) -> str:
    """The last character's unused bits set: the same 64 bytes, another text."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


def _anothers(d: Draft, f: Forge) -> None:
    d.text = f"{d.base.rpartition('.')[0]}.{f.good().rpartition('.')[2]}"


def _claims_of(d: Draft, f: Forge) -> None:
    head, _, sign = d.base.split(".")
    d.text = f"{head}.{b64(compact({**d.claims, 'scope': 'admin generate relay'}))}.{sign}"


def _over_claims_only(d: Draft, f: Forge) -> None:
    signed = d.signed_part()
    d.text = f"{signed}.{b64(f.ed.sign(signed.partition('.')[2].encode()))}"


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


_NONES = ("none", "None", "NONE", "nOnE", "none ", " none", "none\x00", "", "ｎｏｎｅ", "null")
_SECRETS = (
    "raw", "PEM", "PEM without its last newline", "DER", "OpenSSH", "JWK", "JWK Set", "base64",
    "base64url", "nothing",
)  # fmt: skip
_TYPES = (
    "JWT", "jwt", "id_token", "dpop+jwt", "logout+jwt", "secevent+jwt", "", "at+jwt ", "at+JWT;v=1",
    "at-jwt", "application/jwt", "text/at+jwt", ["at+jwt"], None, 1, True, {"at+jwt": 1},
)  # fmt: skip

ATTACKS: dict[str, Variants] = {
    "alg none": {
        **{repr(alg): _none(alg) for alg in _NONES},
        "with the good signature": _none("none", keep_signature=True),
    },
    "alg of another type": {
        repr(alg): header(alg=alg) for alg in (None, True, 0, [], ["EdDSA"], {"EdDSA": 1})
    },
    "alg missing": {"": without_header("alg")},
    "alg in another spelling": {
        **{a: header(alg=a) for a in ("eddsa", "EDDSA", "EdDSA ", "Ed25519", "EdDSA\x00", "Ed448")},
        **{a: header("ES256", alg=a) for a in ("es256", "ES256 ", "ESP256", "SHA256withECDSA")},
    },
    "HMAC with the public key": {
        **{form: _hmac("HS256", form) for form in _SECRETS},
        **{f"{alg} {form}": _hmac(alg, form) for alg in ("HS384", "HS512") for form in _SECRETS[:2]},
    },
    "algorithm swapped": {
        "EdDSA called ES256": header(alg="ES256"),
        "ES256 called EdDSA": header("ES256", alg="EdDSA"),
        "signed by the other key under this kid": _other_key("EdDSA", sign=True),
        "that, with the other alg": _other_key("EdDSA", sign=True, name="ES256"),
        "EdDSA by our key under the ES256 kid": _other_key("ES256", sign=True),
        "that, with its own alg": _other_key("ES256", sign=True, name="EdDSA"),
    },
    "kid of the other key": {
        "EdDSA": _other_key("EdDSA", kid=True), "ES256": _other_key("ES256", kid=True),
        "and its alg": _other_key("EdDSA", kid=True, name="ES256"),
    },
    "self-signed with another algorithm": {
        alg: _self_signed(alg)
        for alg in ("RS256", "RS384", "RS512", "PS256", "PS512", "ES384", "ES512", "ES256K")
    },
    "EdDSA of Ed448": {"": _by(lambda _: ed448.Ed448PrivateKey.generate().sign)},
    "a stranger's key under our kid": {
        "EdDSA": _by(lambda f: by_ed25519(f.stranger)),
        "ES256": _by(lambda _: by_ecdsa(ec.generate_private_key(ec.SECP256R1())), "ES256"),
    },
    "signature stripped": {
        "empty": text(lambda t: t.rpartition(".")[0] + "."),
        "with its dot": text(lambda t: t.rpartition(".")[0]),
    },
    "signature cut": {
        f"to {n} bytes": signature(lambda old, n=n: old[:n])  # type: ignore[misc]
        for n in (1, 32, 63)
    },
    "signature extended": {
        "by a zero": signature(lambda old: old + b"\0"),
        "zero in front": signature(lambda old: b"\0" + old, "ES256"),
        "twice": signature(lambda old: old + old),
    },
    "signature with a flipped bit": {
        **{f"EdDSA {b}": signature(_flipped(b)) for b in (0, 255, 256, 511)},
        **{f"ES256 {b}": signature(_flipped(b), "ES256") for b in (0, 255, 256, 511)},
    },
    "signature of zeros or ones": {
        f"{alg} {byte}": signature(lambda _, byte=byte: bytes([byte]) * 64, alg)  # type: ignore[misc]
        for alg in ("EdDSA", "ES256") for byte in (0, 1, 255)
    },
    "another token's signature": {"": Attack(_anothers)},
    "signature over something else": {"the claims alone": Attack(_over_claims_only)},
    "claims changed after signing": {"": Attack(_claims_of)},
    "malleable EdDSA signature (S + L)": {"": signature(_plus_order)},
    "psychic ES256 signature": {
        f"r {r}, s {s}": signature(_pair(r, s), "ES256")
        for r, s in ((0, 0), (0, 1), (1, 0), (1, 1), (ES256_ORDER, ES256_ORDER), (ES256_ORDER, 0))
    },
    "ES256 signature in DER": {"": signature(_der, "ES256")},
    "stray bits in base64": {
        "of the signature": text(_stray_bits), "of ES256's": text(_stray_bits, "ES256"),
    },
    "key embedded as jwk": _brings("jwk"),
    "key behind jku": {**_brings("jku"), **{f"@ {k}": v for k, v in _brings("jku on our host").items()}},
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
        for kid in ("../../../../dev/null", "/dev/null", "..\\..\\nul", "file:///dev/null", "C:\\nul")
    },
    "kid as SQL": {
        kid: header(kid=kid)
        for kid in ("' OR '1'='1", "x' UNION SELECT 'secret' --", "1; DROP TABLE signing_keys")
    },
    "kid as a command or address": {
        kid: header(kid=kid) for kid in ("|/usr/bin/id", "$(id)", "http://127.0.0.1:1/k", "${jndi:x}")
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
        "PBES2 with a costly count": _encrypted(alg="PBES2-HS256+A128KW", p2c=2**31 - 1, p2s="AAAA"),
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
    **CLAIM_ATTACKS,
    **FORM_ATTACKS,
}  # fmt: skip
"""Class of attack -> variant -> attack. Every one of them must be refused everywhere."""

ACCEPTED: Variants = {
    "EdDSA": header(),
    "ES256": header("ES256"),
    "ES256 with the other s": signature(high_s, "ES256"),
    "typ in capitals": header(typ="AT+JWT"),
    "typ in full": header(typ="application/at+jwt"),
    "audience among others": claims(aud=["other", "anabranch"]),
    "issued by a clock that runs ahead": moved(iat=20, exp=20),
    "not before a moment ahead": moved(nbf=20),
    "ended a moment ago": moved(iat=-320, exp=-320),
    "the longest life": moved(exp=300),
    "a claim that nobody knows": claims(future={"nested": [1, 2.5, "x", None, True]}),
    "no tenant": without("tenant"),
}
"""What is unusual but right. The other s of ES256 makes a second text of the same token; that is
harmless: it says the same, and revocation is by `jti`."""


def cases() -> Iterator[tuple[str, Attack]]:
    """Every attack with its name."""
    for kind, variants in ATTACKS.items():
        for variant, attack in variants.items():
            yield f"{kind}: {variant}" if variant else kind, attack
