"""When a failed attempt is repeated, and after how long. Pure; randomness is passed in.

Only attempts that delivered nothing are ever repeated. Backing off follows "full jitter" halved,
as in AWS's "Exponential Backoff And Jitter"; the budget follows gRPC's retry throttling.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.cloud_proxy.answer import FailureKind, ProviderFailure

_REPEATABLE = frozenset({FailureKind.UNREACHABLE, FailureKind.FAILED, FailureKind.BUSY})
# Never repeated, whatever the provider's headers say: nothing would change.
_FINAL = frozenset(
    {
        FailureKind.REFUSED_KEY,
        FailureKind.NO_CREDIT,
        FailureKind.REFUSED_REQUEST,
        FailureKind.TOO_LONG,
        FailureKind.MISCONFIGURED,
    }
)
_LONGEST_HINT = 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all, the first included; `base` and `longest_wait` in seconds."""

    attempts: int = 3
    base: float = 0.2
    longest_wait: float = 2.0


class RetryBudget:
    """Keeps repeats to a share of the requests, so that a failing provider is not stormed."""

    def __init__(self, share: float = 0.2, burst: float = 10.0) -> None:
        self._share = share
        self._burst = burst
        self._tokens = burst

    def earn(self) -> None:
        """A request was made."""
        self._tokens = min(self._tokens + self._share, self._burst)

    def spend(self) -> bool:
        """Takes the right to one repeat; False when there is none."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def wait_before(
    failure: ProviderFailure,
    attempt: int,
    policy: RetryPolicy,
    key_wait: float,
    random: Callable[[], float],
) -> float | None:
    """Seconds before the next attempt; None when there is to be none.

    `attempt` counts from 1. `key_wait` is how long until a key may be used again, 0 when another
    one may at once.
    """
    if attempt >= policy.attempts or failure.kind in _FINAL or failure.retry is False:
        return None
    if failure.kind not in _REPEATABLE and not failure.retry:
        return None
    if failure.kind is FailureKind.BUSY:
        return key_wait if key_wait <= policy.longest_wait else None
    if failure.retry_after is not None:
        return failure.retry_after if failure.retry_after <= policy.longest_wait else None
    ceiling = min(policy.base * 2.0 ** (attempt - 1), policy.longest_wait)
    return ceiling * (0.5 + random() / 2)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a response asks to wait, in any of the spellings in use; None without one.

    `now` is Unix time, for Retry-After given as a date. `headers` is case-insensitive.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name, ""))
        if milliseconds is not None:
            return min(milliseconds / 1000, _LONGEST_HINT)
    text = headers.get("retry-after", "").strip()
    seconds = _number(text)
    if seconds is not None:
        return min(seconds, _LONGEST_HINT)
    if text:
        try:
            at = email.utils.parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            return None
        return min(max(at - now, 0.0), _LONGEST_HINT)
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """The provider's own word on repeating, when it gives one."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())


def _number(text: str) -> float | None:
    text = text.strip()
    if not text or not text.replace(".", "", 1).isascii() or not text.replace(".", "", 1).isdigit():
        return None
    return float(text)
