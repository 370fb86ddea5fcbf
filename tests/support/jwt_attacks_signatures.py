"""The attacks on a token's algorithm and signature, from `none` to signatures of zeros."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.jwt_forge import (
    ED25519_ORDER,
    ES256_ORDER,
    Attack,
    Draft,
    Forge,
    b64,
    by_ecdsa,
    by_ed25519,
    compact,
    ed_jwk,
    header,
    signature,
    text,
    without_header,
)


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


_NONES = (
    "none", "None", "NONE", "nOnE", "none ", " none", "none\x00", "", "null",
    "\uff4e\uff4f\uff4e\uff45",
)  # fmt: skip
_SECRETS = (
    "raw", "PEM", "PEM without its last newline", "DER", "OpenSSH", "JWK", "JWK Set", "base64",
    "base64url", "nothing",
)  # fmt: skip

SIGNATURE_ATTACKS: dict[str, dict[str, Attack]] = {
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
        **{f"{a} {form}": _hmac(a, form) for a in ("HS384", "HS512") for form in _SECRETS[:2]},
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
}  # fmt: skip
