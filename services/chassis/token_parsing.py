"""Reads a compact signed JWT strictly: one spelling a token, no doubt about what it says.

Pure. It checks no signature, and knows neither keys nor the time: authn.py does. JSON that two
readers could take for two things (a name twice, NaN, a number beyond all use) is no token, and
nothing here costs more than the token's length.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TOKEN_BYTES = 4096
"""gRPC refuses metadata at random between 8 and 16 KB, so a token stays well below."""
_SIGNATURE_BYTES = 64
"""Of EdDSA with Ed25519 and of ES256 alike."""
_MOST_BRACKETS = 200
"""Opening ones in one JSON text, those in strings too: a bound of its depth that costs no parsing,
far below the interpreter's own."""
_MOST_DIGITS = 19
_HEADER = frozenset({"alg", "typ", "kid"})
"""What our issuer writes, and all that a header may hold. Every other parameter either asks for
work before the signature is known (jku, x5u, zip), brings a key along (jwk, x5c) or changes what is
signed (b64, crit); no token needs one. Verifiers learn a new parameter before issuers write it."""
_PART = re.compile(r"[A-Za-z0-9_-]+")
_SCOPE = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]*")
"""RFC 6749, 3.3: printable ASCII but for quotes and backslashes, with spaces between."""


class MalformedToken(Exception):
    """The text is no token of ours. The message never holds a part of it."""


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """What an unverified token says."""

    header: Mapping[str, str]
    claims: Mapping[str, Any] = field(repr=False)


def parse_token(token: str) -> ParsedToken:
    """Header and claims, whose types are right. Raises MalformedToken."""
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedToken("longer than any token")
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise MalformedToken("not three parts")
    header, claims, signature = (_decoded(part) for part in parts)
    if len(signature) != _SIGNATURE_BYTES:
        raise MalformedToken("a signature of another length")
    return ParsedToken(_checked_header(_object(header)), _checked_claims(_object(claims)))


def _decoded(part: str) -> bytes:
    """The bytes of base64url without padding, in the one spelling that they have."""
    if not _PART.fullmatch(part) or len(part) % 4 == 1:
        raise MalformedToken("not base64url")
    raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():
        raise MalformedToken("base64url with stray bits")
    return raw


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object, in UTF-8 and unambiguous."""
    try:
        text = raw.decode("utf-8")
        if text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise MalformedToken("JSON that is nested too deeply")
        found = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_constant,
        )
        # An escape can spell half a surrogate pair, which nothing could write down later.
        json.dumps(found, ensure_ascii=False).encode()
    except ValueError:
        raise MalformedToken("not JSON") from None
    if not isinstance(found, dict):
        raise MalformedToken("not a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedToken("a name that occurs twice")
    return found


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise MalformedToken("a number of too many digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedToken("a number that is infinite")
    return number


def _constant(_: str) -> float:
    raise MalformedToken("a number that is none")


def _checked_header(header: dict[str, Any]) -> dict[str, str]:
    if header.keys() != _HEADER:
        raise MalformedToken("not the header parameters of an access token")
    if not all(isinstance(value, str) for value in header.values()):
        raise MalformedToken("a header parameter that is no text")
    return header


def _checked_claims(claims: dict[str, Any]) -> dict[str, Any]:
    """The claims, if those that every token has are of the types of RFC 9068, 2.2.

    Times are whole seconds. `sub` is the client itself: nobody else's tokens are issued here.
    """
    if not all(type(claims.get(name)) is int for name in ("exp", "iat")):
        raise MalformedToken("a time that is no whole number")
    if "nbf" in claims and type(claims["nbf"]) is not int:
        raise MalformedToken("a time that is no whole number")
    for name in ("client_id", "sub", "jti"):
        if not _is_name(claims.get(name)) or not claims[name]:
            raise MalformedToken("a name that is none")
    if not _is_name(claims.get("tenant", "")):
        raise MalformedToken("a name that is none")
    if claims["sub"] != claims["client_id"]:
        raise MalformedToken("a subject that is not the client")
    scope = claims.get("scope", "")
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise MalformedToken("scopes that are none")
    return claims


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()
