"""Finds e-mail addresses: local part, @, and a domain with at least one dot.

Quoted local parts, addresses at bare hosts and at IP numbers are not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LONGEST_LOCAL = 64
# Letters of European alphabets, not of Chinese: there, no space parts an address from its sentence.
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f"
_ALNUM = f"0-9{_LETTER}"
_LOCAL_BACKWARDS = re.compile(f"[{_ALNUM}._%+'-]*")
_LABEL = f"[{_ALNUM}](?:[{_ALNUM}-]{{0,61}}[{_ALNUM}])?"
# A label ends at a dot, so there is one way to read a domain, and backing off reads no label twice.
_DOMAIN = re.compile(rf"(?:{_LABEL}\.){{1,8}}(?:xn--[A-Za-z0-9-]{{2,59}}|[{_LETTER}]{{2,24}})")
_LONGEST_DOMAIN = 253


def find(text: str) -> Iterator[tuple[int, int]]:
    """See Detector. Every @ is looked at once: as far as the one before it, and the one after."""
    after = 0
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1, at + 1 + _LONGEST_DOMAIN)
        if domain:
            start = _start(text, max(at - _LONGEST_LOCAL, after), at)
            if start < at:
                after = domain.end()
                yield start, after
        at = text.find("@", at + 1)


def _start(text: str, earliest: int, at: int) -> int:
    local = _LOCAL_BACKWARDS.match(text[earliest:at][::-1])
    start = at - (local.end() if local else 0)
    # Punctuation that only happens to stand before an address.
    while start < at and text[start] in ".%+'-":
        start += 1
    return start
