"""What a provider's response headers say is left of our rate limits. Pure.

Every family of spellings is read; what is not understood is passed over, since a limit that is
unknown only means that a 429 tells of it later.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum


class LimitKind(Enum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`remaining` of what `kind` counts may be used until `resets_in` seconds from now."""

    kind: LimitKind
    remaining: int
    resets_in: float


# The header with what remains, the one that says until when, and what is counted. The names
# without a unit count requests, wherever they are in use.
_HEADERS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", LimitKind.REQUESTS),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", LimitKind.TOKENS),
    *(
        (
            f"anthropic-ratelimit-{kind.value.replace('_', '-')}-remaining",
            f"anthropic-ratelimit-{kind.value.replace('_', '-')}-reset",
            kind,
        )
        for kind in LimitKind
    ),
    ("x-ratelimit-remaining", "x-ratelimit-reset", LimitKind.REQUESTS),
    ("ratelimit-remaining", "ratelimit-reset", LimitKind.REQUESTS),
)
_LONGEST = 86_400.0
_LONGEST_TEXT = 64
# Numbers this large are points in time, not seconds to wait: Unix time, in s and in ms.
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(d|h|ms|m|us|\u00b5s|ns|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_UNITS = {
    "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0,
    "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "ns": 1e-9,
}  # fmt: skip


def read_limits(headers: Mapping[str, str], now: float) -> list[RateLimit]:
    """The limits that a response states, at most one of a header; empty where it states none.

    `headers` is case-insensitive, `now` is Unix time in seconds. Raises nothing.
    """
    found = []
    for remaining_in, reset_in, kind in _HEADERS:
        text = headers.get(remaining_in)
        if text is None:
            continue
        remaining = _count(text)
        resets_in = _seconds(headers.get(reset_in, ""), now)
        if remaining is not None and resets_in is not None:
            # Without both, it is not known for how long the rest must do.
            found.append(RateLimit(kind, remaining, resets_in))
    return found


def _count(text: str) -> int | None:
    text = text.strip()
    if len(text) > _LONGEST_TEXT or not _NUMBER.fullmatch(text):
        return None
    return int(float(text))


def _seconds(text: str, now: float) -> float | None:
    """Seconds from now until a reset that is given as a duration, a number or a date."""
    text = text.strip()
    if not text or len(text) > _LONGEST_TEXT:
        return None
    if _NUMBER.fullmatch(text):
        value = float(text)
        if value >= _EPOCH_MILLISECONDS:
            value = value / 1000 - now
        elif value >= _EPOCH_SECONDS:
            value -= now
    elif _DURATION.fullmatch(text):
        value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        at = _date(text)
        if at is None:
            return None
        value = at - now
    return min(max(value, 0.0), _LONGEST) if math.isfinite(value) else None


def _date(text: str) -> float | None:
    """Unix time of a date as in RFC 3339, or as in HTTP's own headers."""
    for read in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            at = read(text)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None
