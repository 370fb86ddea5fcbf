"""The form of API keys: recognises one, says what is wrong with one, and finds leaked ones.

    abk_<16 characters of public id>_<43 characters of secret><6 characters of checksum>

Pure: it neither makes random parts nor knows which keys exist. A right checksum means that a key
was copied whole, not that it is good.
"""

from __future__ import annotations

import re
import zlib

PREFIX = "abk_"
PUBLIC_ID_LENGTH = 16
SECRET_LENGTH = 43
"""256 random bits in base62."""
CHECKSUM_LENGTH = 6
LENGTH = len(PREFIX) + PUBLIC_ID_LENGTH + len("_") + SECRET_LENGTH + CHECKSUM_LENGTH

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PUBLIC_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

SCANNER = f"{PREFIX}[0-9a-z]{{{PUBLIC_ID_LENGTH}}}_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
"""Regular expression for scanners of leaked secrets (RE2 and PCRE understand it). It anchors
nothing, so that a key is found wherever it was glued to; `is_well_formed` sorts out chance hits."""

_FORM = re.compile(SCANNER)


def compose(public_id: str, secret: str) -> str:
    """The whole key of a public id and a secret part."""
    body = f"{PREFIX}{public_id}_{secret}"
    return body + checksum(body)


def looks_like_key(text: str) -> bool:
    """Whether it is meant to be an API key, rather than a token."""
    return text.startswith(PREFIX)


def is_well_formed(text: str) -> bool:
    """Whether this is one whole key: its form and its checksum are right."""
    return not fault(text)


def fault(text: str) -> str:
    """What is wrong with the form of a key, without quoting it; empty when nothing is."""
    if not text.startswith(PREFIX):
        return f"it does not begin with {PREFIX}"
    if len(text) != LENGTH:
        return f"it has {len(text)} characters, not {LENGTH}"
    if not _FORM.fullmatch(text):
        return "it holds characters, or an underscore, where none belong"
    if text[-CHECKSUM_LENGTH:] != checksum(text[:-CHECKSUM_LENGTH]):
        return "its checksum is wrong: a character is missing, swapped or mistyped"
    return ""


def public_id(text: str) -> str:
    """The part of a key that may be shown. Raises ValueError when it is not well formed."""
    if wrong := fault(text):
        raise ValueError(f"no API key: {wrong}")
    return text[len(PREFIX) : len(PREFIX) + PUBLIC_ID_LENGTH]


def secret_part(text: str) -> str:
    """The part of a key that is secret. Raises ValueError when it is not well formed."""
    if wrong := fault(text):
        raise ValueError(f"no API key: {wrong}")
    return text[len(PREFIX) + PUBLIC_ID_LENGTH + 1 : -CHECKSUM_LENGTH]


def checksum(text: str) -> str:
    """The six characters that follow `text`, which is a key up to its checksum.

    CRC-32 (ISO 3309, as in zlib) in base62, most significant digit first, padded with zeros.
    """
    rest = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(BASE62))
        digits = BASE62[digit] + digits
    return digits
