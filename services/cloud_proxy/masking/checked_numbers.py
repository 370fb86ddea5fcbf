"""Finds numbers that carry a check digit: payment cards and Chinese resident identity numbers.

Cards: ISO/IEC 7812, with the lengths that issuers use. Identity numbers: GB 11643-1999, 18 digits;
the older 15 digits have no check and are not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A run is read on as far as it goes, so that no text is looked at again and again.
_CARD_RUN = re.compile(r"[0-9][0-9 -]{12,}")
_CARD = re.compile(
    r"""(?<![0-9])(?=
      (?P<plain>[2-6][0-9]{12,18})(?![0-9])
    | (?P<fours>[2-6][0-9]{3}(?P<s>[ -])[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{4})(?![0-9])
      (?P<three>(?P=s)[0-9]{3}(?![0-9]))?
    | (?P<amex>3[0-9]{3}(?P<t>[ -])[0-9]{6}(?P=t)[0-9]{4,5})(?![0-9])
    | (?P<long>62[0-9]{4}[ -][0-9]{13})(?![0-9])
    )""",
    re.VERBOSE,
)
# From an ASCII digit to its double's digits added up, and to itself.
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_SINGLE = bytes.maketrans(b"0123456789", bytes(range(10)))

_ID_RUN = re.compile(r"[0-9][0-9 -]{16,}")
_ID = re.compile(
    r"""(?<![0-9])(?=(
      (?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]|91)[0-9]{4} [ -]?
      (?:18|19|20)[0-9]{2} (?:0[1-9]|1[0-2]) (?:0[1-9]|[12][0-9]|3[01]) [ -]?
      [0-9]{3}[0-9Xx]
    )(?![0-9A-Za-z]))""",
    re.VERBOSE,
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """See Detector."""
    for run in _CARD_RUN.finditer(text):
        start, stop = run.span()
        after = start
        for found in _CARD.finditer(text, start, stop):
            if found.start() < after:
                continue
            end = _card_end(found)
            if end:
                after = end
                yield found.start(), end


def find_resident_ids(text: str) -> Iterator[tuple[int, int]]:
    """See Detector."""
    for run in _ID_RUN.finditer(text):
        start, stop = run.span()
        after = start
        # The check may be an X, and what follows it matters too.
        for found in _ID.finditer(text, start, min(stop + 2, len(text))):
            if found.start() >= after and resident_id_is_right(_digits(found[1])):
                after = found.end(1)
                yield found.span(1)


def luhn_is_right(digits: str) -> bool:
    """Whether ASCII digits satisfy the check of ISO/IEC 7812-1."""
    raw = digits.encode("ascii")
    total = sum(raw[-1::-2].translate(_SINGLE)) + sum(raw[-2::-2].translate(_DOUBLED))
    return total % 10 == 0


def resident_id_is_right(number: str) -> bool:
    """Whether the last of 18 characters is the check of the 17 ASCII digits before it."""
    total = sum([weight * (ord(c) - 48) for weight, c in zip(_WEIGHTS, number, strict=False)])
    return _CHECKS[total % 11] == number[-1].upper()


def _card_end(found: re.Match[str]) -> int:
    """Where the card at this place ends; 0 when there is none."""
    if found["three"]:
        # Four groups and three more digits: a card of 19, or one of 16 and its security code.
        digits = _digits(found["fours"] + found["three"])
        if _is_issued(digits) and luhn_is_right(digits):
            return found.end("three")
    for form in ("plain", "fours", "amex", "long"):
        if found[form]:
            digits = _digits(found[form])
            return found.end(form) if _is_issued(digits) and luhn_is_right(digits) else 0
    return 0


def _is_issued(digits: str) -> bool:
    """Whether there are cards of this beginning and length."""
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if two // 10 == 4:  # Visa
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:  # Mastercard
        return length == 16
    if two in (34, 37):  # American Express
        return length == 15
    if two == 36 or 3000 <= four <= 3059 or two in (38, 39):  # Diners Club
        return length == 14 or 16 <= length <= 19
    # JCB; UnionPay, Discover and Maestro; Mir.
    known = two == 35 or two // 10 == 6 or two in (50, 56, 57, 58) or 2200 <= four <= 2204
    return known and 16 <= length <= 19


def _digits(text: str) -> str:
    return text.replace(" ", "").replace("-", "")
