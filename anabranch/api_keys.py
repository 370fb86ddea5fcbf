"""The form of an API key, which scanners can recognise and anybody can check offline. Pure.

`abk_`, 16 characters of public id, `_`, 43 base62 characters of secret (256 random bits) and 6 of
checksum: the CRC-32 of all before it. The checksum tells a typing mistake, or what a secret scanner
found, from a key; it proves nothing. Whether a key is good only the auth service knows.
"""

from __future__ import annotations

import re
import zlib

PREFIX = "abk_"
ID_CHARACTERS = 16
SECRET_CHARACTERS = 43
CHECKSUM_CHARACTERS = 6
LENGTH = len(PREFIX) + ID_CHARACTERS + 1 + SECRET_CHARACTERS + CHECKSUM_CHARACTERS
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

SCANNER_PATTERN = r"\babk_[0-9a-z]{16}_[0-9A-Za-z]{49}\b"
"""For secret scanners; `is_well_formed` then rules out what is none."""

_KEY = re.compile(r"abk_[0-9a-z]{16}_[0-9A-Za-z]{49}")


def compose(public_id: str, secret: str) -> str:
    """The whole key of a public id and a secret."""
    body = f"{PREFIX}{public_id}_{secret}"
    return body + checksum(body)


def looks_like_key(text: str) -> bool:
    """Whether it is meant to be an API key, rather than a token."""
    return text.startswith(PREFIX)


def is_well_formed(text: str) -> bool:
    """Whether its form and its checksum are right."""
    if _KEY.fullmatch(text) is None:
        return False
    return checksum(text[:-CHECKSUM_CHARACTERS]) == text[-CHECKSUM_CHARACTERS:]


def public_id(text: str) -> str:
    """The part that may be shown. Raises ValueError for what is no key."""
    if _KEY.fullmatch(text) is None:
        raise ValueError("this is not an API key")
    return text[len(PREFIX) :][:ID_CHARACTERS]


def secret_part(text: str) -> str:
    """The part that is secret. Raises ValueError for what is no key."""
    if _KEY.fullmatch(text) is None:
        raise ValueError("this is not an API key")
    return text[len(PREFIX) + ID_CHARACTERS + 1 : -CHECKSUM_CHARACTERS]


def checksum(body: str) -> str:
    """Six base62 digits of the CRC-32 of everything before them."""
    return base62(zlib.crc32(body.encode()), CHECKSUM_CHARACTERS)


def base62(number: int, width: int) -> str:
    """A number in base 62, padded with zeros. Raises ValueError when it does not fit."""
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    if len(digits) > width:
        raise ValueError("the number is too large")
    return digits.rjust(width, "0")
