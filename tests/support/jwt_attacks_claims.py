"""The attacks on what a token claims: each is signed by the real key, and is refused even so.

Only the issuer could make them; they are what is left when an issuer has a fault, or when another
kind of token is signed with the same key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tests.support.jwt_forge import (
    Attack,
    Draft,
    Forge,
    claims,
    claims_text,
    compact,
    moved,
    without,
)

_NO_TEXTS = (None, 0, 7, 1.5, True, [], ["admin"], {}, {"a": "admin"})


def _issuer(change: Callable[[str], Any]) -> Attack:
    return Attack(lambda d, f: d.claims.update(iss=change(f.issuer)))


def _time(name: str, literal: bytes) -> Attack:
    """A time written so, which a JSON library may not even write."""

    def change(d: Draft, _: Forge) -> None:
        old = b'"%s":%d' % (name.encode(), d.claims[name])
        d.claims_json = compact(d.claims).replace(old, b'"%s":%s' % (name.encode(), literal))

    return Attack(change)


def _times(name: str) -> dict[str, Attack]:
    literals = (
        b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"null", b"true", b"false", b"[]",
        b"{}", b"-1", b"0", b"1" + b"0" * 18, b"9" * 2000, b"1e3", b'""', b'"never"', b'"NaN"',
    )  # fmt: skip
    found = {literal.decode()[:24]: _time(name, literal) for literal in literals}
    found["as text"] = Attack(lambda d, _: d.claims.update({name: str(d.claims[name])}))
    found["in milliseconds"] = Attack(lambda d, _: d.claims.update({name: d.claims[name] * 1000}))
    found["with a fraction"] = Attack(lambda d, _: d.claims.update({name: d.claims[name] + 0.5}))
    found["in a list"] = Attack(lambda d, _: d.claims.update({name: [d.claims[name]]}))
    return found


def _twice(name: str, other: str) -> dict[str, Attack]:
    """A name twice, first or last a lie: readers differ in which one they take."""
    member = f'"{name}":{other}'.encode()
    return {
        f"{name}, the lie first": claims_text(lambda raw: b"{" + member + b"," + raw[1:]),
        f"{name}, the lie last": claims_text(lambda raw: raw[:-1] + b"," + member + b"}"),
    }


CLAIM_ATTACKS: dict[str, dict[str, Attack]] = {
    "iss missing": {"": without("iss"), "null": claims(iss=None)},
    "iss of another": {
        "other": claims(iss="https://auth.example.com"),
        "empty": claims(iss=""),
        "prefix": _issuer(lambda iss: iss[:-1]),
        "suffix": _issuer(lambda iss: iss + ".example.com"),
        "slash behind": _issuer(lambda iss: iss + "/"),
        "capitals": _issuer(str.upper),
        "space": _issuer(lambda iss: iss + " "),
        "http": _issuer(lambda iss: iss.replace("https", "http")),
        "user part": _issuer(lambda iss: iss + "@example.com"),
        "Cyrillic letter": _issuer(lambda iss: iss.replace("a", "\u0430", 1)),
    },
    "iss of another type": {
        "list": _issuer(lambda iss: [iss]),
        "object": _issuer(lambda iss: {iss: 1}),
        **{repr(iss): claims(iss=iss) for iss in (0, True)},
    },
    "aud missing": {"": without("aud"), "null": claims(aud=None)},
    "aud of another": {
        repr(aud): claims(aud=aud)
        for aud in ("other", "", "anabranc", "anabranch2", "ANABRANCH", "anabranch ", "*", "a b",
                    "anabranch,other", "other anabranch")
    },
    "aud list without ours": {repr(a): claims(aud=a) for a in ([], ["other"], ["a", "b"], [""])},
    "aud of another type": {
        repr(aud): claims(aud=aud)
        for aud in ({"anabranch": 1}, 0, True, [["anabranch"]], ["anabranch", 1], [None])
    },
    "exp missing": {"": without("exp")},
    "exp that is no time": _times("exp"),
    "expired": {
        "by five minutes": moved(iat=-600, exp=-600),
        "by 31 seconds": moved(iat=-331, exp=-331),
        "before it was issued": moved(exp=-301),
        "when it was issued": moved(exp=-300),
    },
    "iat missing": {"": without("iat")},
    "iat that is no time": _times("iat"),
    "from the future": {
        "by five minutes": moved(iat=300, exp=300), "by two": moved(iat=120, exp=120),
    },
    "nbf that is no time": {
        repr(nbf): claims(nbf=nbf)
        for nbf in (None, True, False, "0", "", "x", [], {}, 0.5, math.inf, -math.inf, math.nan)
    },
    "nbf in the future": {"by five minutes": moved(nbf=300), "by a minute": moved(nbf=60)},
    "too long a life": {
        "601 seconds": moved(exp=301), "a day": moved(exp=86_400), "for ever": claims(exp=2**53),
        "issued long ago": moved(iat=-86_400), "issued in 1970": claims(iat=0),
    },
    **{
        f"{name} missing": {"": without(name)} for name in ("sub", "client_id", "jti")
    },
    **{
        f"{name} that is no name": {
            **{repr(value): claims(**{name: value}) for value in _NO_TEXTS},
            "empty": claims(**{name: ""}),
            "null byte": claims(**{name: "admin\0"}),
            "newline": claims(**{name: "admin\nadmin"}),
            "direction override": claims(**{name: "\u202eadmin"}),
        }
        for name in ("sub", "client_id", "jti")
    },
    "sub and client_id of no type that they share": {
        repr(value): claims(sub=value, client_id=value)
        for value in (*_NO_TEXTS, "", "admin\0", "ad\rmin")
    },
    "sub of another client": {
        "sub": claims(sub="somebody-else"), "client_id": claims(client_id="somebody-else"),
        "other case": Attack(lambda d, f: d.claims.update(sub=f.client_id.upper())),
        "space": Attack(lambda d, f: d.claims.update(sub=f.client_id + " ")),
    },
    "scope that is no text": {
        repr(scope): claims(scope=scope)
        for scope in (None, 0, True, ["admin"], [], {"admin": True}, [["admin"]])
    },
    "scope with other separators": {
        repr(scope): claims(scope=scope)
        for scope in ("generate\tadmin", "generate\nadmin", "generate\u00a0admin", "admin\u2003x",
                      "generate\0admin", "generate\\admin", 'generate"admin', "\u0430dmin")
    },
    "tenant that is no name": {
        repr(tenant): claims(tenant=tenant)
        for tenant in (*_NO_TEXTS, "shop\0", "shop\n", "\u200bshop")
    },
    **{
        f"{name} that is no list of texts": {
            repr(value): claims(**{name: value})
            for value in (None, "*", 0, True, {}, {"*": 1}, [1], [None], [["*"]], ["*", 1])
        }
        for name in ("models", "networks", "quota")
    },
    "networks that cannot be read": {
        repr(text): claims(networks=["10.0.0.0/8", text])
        for text in ("", "*", "10.0.0.1/8", "10.0.0.0/33", "localhost", "10.0.0.0/8\n", "0/0")
    },
    "quota that cannot be read": {
        repr(text): claims(quota=[text]) for text in ("", "unlimited", "-1", "NaN", "x=1")
    },
    "audit detail that is none": {
        repr(value): claims(audit=value)
        for value in (None, "", "NONE", "nothing", 0, True, [], ["none"], {"none": 1})
    },
    **{
        f"{name} that is no text": {repr(value): claims(**{name: value}) for value in _NO_TEXTS}
        for name in ("akid", "cipher")
    },
    "claims twice": {
        **_twice("client_id", '"admin"'), **_twice("sub", '"admin"'), **_twice("scope", '"admin"'),
        **_twice("tenant", '"operators"'), **_twice("exp", "99999999999"), **_twice("jti", '"x"'),
        **_twice("iss", '"https://auth.example.com"'), **_twice("aud", '"other"'),
        **_twice("scop\\u0065", '"admin"'),
        "deep within": claims_text(lambda raw: raw[:-1] + b',"x":{"y":[{"z":1,"z":2}]}}'),
        "the same value": claims_text(lambda raw: raw[:-1] + b',"x":1,"x":1}'),
    },
}  # fmt: skip
