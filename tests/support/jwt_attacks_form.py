"""The attacks on the form of a token: its parts, its base64, its JSON, its size.

Where bytes of header or claims are changed the real key signs them, so that nothing but the form
is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.support.jwt_forge import (
    Attack,
    Draft,
    Forge,
    b64,
    claims,
    claims_text,
    compact,
    header,
    header_text,
    text,
)

Bytes = Callable[[bytes], bytes]
MOST_BYTES = 4096


def _part(number: int, change: Callable[[str], str]) -> Attack:
    def apply(token: str) -> str:
        parts = token.split(".")
        parts[number] = change(parts[number])
        return ".".join(parts)

    return text(apply)


def _parts(change: Callable[[str], str], numbers: tuple[int, ...] = (0, 1, 2)) -> dict[str, Attack]:
    return {("header", "claims", "signature")[n]: _part(n, change) for n in numbers}


def _both(change: Bytes) -> dict[str, Attack]:
    return {"header": header_text(change), "claims": claims_text(change)}


def _padded(part: str) -> str:
    return part + "=" * (-len(part) % 4 or 4)


def _member(json_text: bytes) -> Attack:
    return claims_text(lambda raw: raw[:-1] + b',"x":' + json_text + b"}")


def _standard_alphabet(d: Draft, f: Forge) -> None:
    """The alphabet of plain base64, and signed so; the claims make sure that they differ."""
    d.claims["x"] = "?>~?" * 6
    raw = compact(d.claims)
    signed = f"{b64(compact(d.header))}.{b64(raw).replace('-', '+').replace('_', '/')}"
    d.text = f"{signed}.{b64(f.ed.sign(signed.encode()))}"
    assert "+" in d.text or "/" in d.text


def _padded_and_signed(d: Draft, f: Forge) -> None:
    """The padding is within what is signed."""
    while len(compact(d.claims)) % 3 == 0:
        d.claims["scope"] += " "
    signed = ".".join(_padded(part) for part in d.signed_part().split("."))
    d.text = f"{signed}.{b64(f.ed.sign(signed.encode()))}"


def _nested_beyond(levels: int, opening: bytes, closing: bytes) -> Attack:
    return _member(opening * levels + b"1" + closing * levels)


def _reordered(order: tuple[int, ...]) -> Attack:
    def apply(token: str) -> str:
        parts = token.split(".")
        return ".".join(parts[n] for n in order)

    return text(apply)


FORM_ATTACKS: dict[str, dict[str, Attack]] = {
    "empty": {"": text(lambda t: ""), "dots": text(lambda t: ".."), "dot": text(lambda t: ".")},
    "another number of parts": {
        "one": text(lambda t: t.replace(".", "")),
        "two": text(lambda t: t.rpartition(".")[0]),
        "four": text(lambda t: t + "." + t.rpartition(".")[2]),
        "a dot behind": text(lambda t: t + "."),
        "a dot in front": text(lambda t: "." + t),
        "six": text(lambda t: f"{t}.{t}"),
        "many": text(lambda t: t + "." * 1000),
    },
    "empty parts": _parts(lambda part: ""),
    "parts in another order": {
        repr(order): _reordered(order) for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (0, 0, 2))
    },
    "padding": {
        **_parts(_padded), "one more sign": text(lambda t: t + "="),
        "signed": Attack(_padded_and_signed),
    },
    "whitespace within": {
        **{f"space in {k}": v for k, v in _parts(lambda p: p[:5] + " " + p[5:]).items()},
        **{f"newline in {k}": v for k, v in _parts(lambda p: p[:5] + "\n" + p[5:]).items()},
        "newline behind": text(lambda t: t + "\n"),
        "carriage return and a field": text(lambda t: t + "\r\nx-scope: admin"),
        "tab in front": text(lambda t: "\t" + t),
        "no-break space behind": text(lambda t: t + "\u00a0"),
    },
    "null byte within": {
        **_parts(lambda p: p[:5] + "\0" + p[5:]), "behind": text(lambda t: t + "\0"),
    },
    "characters that base64url has not": {
        **_parts(lambda p: p[:5] + "!" + p[5:]), "plain base64, signed": Attack(_standard_alphabet),
        "percent": text(lambda t: t.replace(".", "%2E")), "comma": text(lambda t: t + "," + t),
        "quotes": text(lambda t: f'"{t}"'), "brackets": text(lambda t: f"<{t}>"),
    },
    "characters beyond ASCII": {
        "letter": _part(2, lambda p: p[:5] + "\u00e9" + p[5:]),
        "full-width digits": text(lambda t: t[:5] + "\uff11" + t[5:]),
        "emoji": text(lambda t: t + "\U0001f511"),
        "joiner": text(lambda t: t + "\u200d"),
        "byte order mark": text(lambda t: "\ufeff" + t),
    },
    "dots that are none": {
        hex(ord(dot)): text(lambda t, dot=dot: t.replace(".", dot))  # type: ignore[misc]
        for dot in "\uff0e\u3002\u2024\u00b7\u0701"
    },
    "half a surrogate pair in the text": {
        "high": text(lambda t: t + "\ud800"), "low": text(lambda t: "\udc80" + t),
        "in the signature": _part(2, lambda p: p[:5] + "\udfff" + p[5:]),
    },
    "half a surrogate pair in the JSON": {
        "in a claim": claims(tenant="\ud800"), "in an unknown one": claims(x="\udfff"),
        "in a name": claims(**{"\ud800": 1}), "in the header": header(kid="\ud800"),
    },
    "bytes that are not UTF-8": {
        **_both(lambda raw: raw.replace(b"t", b"\xff", 1)),
        "overlong": claims_text(lambda raw: raw.replace(b'"jti":"', b'"jti":"\xc0\x80')),
        "surrogates": claims_text(lambda raw: raw.replace(b'"jti":"', b'"jti":"\xed\xa0\x80')),
    },
    "JSON in another encoding": {
        f"{where} in {name}": attack
        for name in ("utf-16", "utf-16-le", "utf-32-be", "utf-8-sig")
        for where, attack in _both(lambda raw, name=name: raw.decode().encode(name)).items()  # type: ignore[misc]
    },
    "JSON that is none": {
        **{f"comment in {k}": v for k, v in _both(lambda raw: b"{/**/" + raw[1:]).items()},
        **{f"comma in {k}": v for k, v in _both(lambda raw: raw[:-1] + b",}").items()},
        **{f"rest behind {k}": v for k, v in _both(lambda raw: raw + raw).items()},
        **{f"quotes in {k}": v for k, v in _both(lambda raw: raw.replace(b'"', b"'")).items()},
        **{f"cut {k}": v for k, v in _both(lambda raw: raw[:-1]).items()},
        "bare newline": claims_text(lambda raw: raw.replace(b'"jti":"', b'"jti":"\n')),
    },
    "JSON that is no object": {
        f"{where} {value.decode()}": attack
        for value in (b"[]", b"null", b"1", b'"x"', b"true", b'[["alg","EdDSA"]]')
        for where, attack in _both(lambda raw, value=value: value).items()  # type: ignore[misc]
    },
    "claims in a list": {"": claims_text(lambda raw: b"[" + raw + b"]")},
    "nested deeply": {
        "lists": _nested_beyond(1200, b"[", b"]"), "objects": _nested_beyond(400, b'{"":', b"}"),
        "unclosed": _member(b"[" * 2500), "ten thousand": _nested_beyond(10_000, b"[", b"]"),
        "in the header": header_text(lambda raw: raw[:-1] + b',"x":' + b"[" * 2400),
    },
    "numbers beyond use": {
        "2500 digits": _member(b"9" * 2500), "negative": _member(b"-" + b"9" * 2500),
        "5000 digits": _member(b"9" * 5000), "exponent": _member(b"1e999999999"),
        "2500 decimals": _member(b"1" + b"0" * 2500 + b".5"), "NaN": _member(b"NaN"),
        "Infinity": _member(b"[-Infinity]"),
    },
    "too large": {
        "claims": claims(x="x" * MOST_BYTES), "a megabyte of nothing": text(lambda t: "a" * 7000),
        "a good token and more": text(lambda t: t + "A" * MOST_BYTES),
    },
    "scheme within the token": {
        scheme: text(lambda t, scheme=scheme: f"{scheme} {t}")  # type: ignore[misc]
        for scheme in ("Bearer", "Basic")
    },
}  # fmt: skip
