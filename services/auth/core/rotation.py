"""When signing keys begin to sign and when they are forgotten.

A key signs from its `active_at` until the `active_at` of its successor. It is
published before the first and kept after the second, so that every verifier
knows the key of every live token. Times are unix seconds: replicas of the
service share the schedule through the database. It makes no keys itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from services.auth.core.claims import AFTERLIFE, MAX_TOKEN_LIFE

HANDOVER = 60.0
"""Seconds for which a replica with a late clock, or a slow refresh, may still sign with the key
that was just replaced."""


class Scheduled(Protocol):
    """A signing key, as far as the schedule sees it."""

    @property
    def kid(self) -> str: ...

    @property
    def active_at(self) -> float: ...


K = TypeVar("K", bound=Scheduled)


@dataclass(frozen=True, slots=True)
class RotationPolicy:
    """How often keys change; both in seconds.

    `publish_ahead` is at least two lifetimes of a cached JWK Set.
    """

    period: float
    publish_ahead: float


def in_order(keys: Sequence[K]) -> list[K]:
    """Keys by the time they begin to sign; the kid settles ties equally on every replica."""
    return sorted(keys, key=lambda key: (key.active_at, key.kid))


def signer(keys: Sequence[K], now: float) -> K | None:
    """The key that signs now: the newest that is active. Where none is, as by a clock that is late
    after all were replaced, the first that will be; None without any."""
    ordered = in_order(keys)
    active = [key for key in ordered if key.active_at <= now]
    return active[-1] if active else next(iter(ordered), None)


def dead(keys: Sequence[K], now: float) -> list[K]:
    """Keys whose last token no verifier accepts any more."""
    ordered = in_order(keys)
    grace = MAX_TOKEN_LIFE + AFTERLIFE + HANDOVER
    return [key for key, successor in pairwise(ordered) if successor.active_at + grace < now]


def next_activation(keys: Sequence[Scheduled], now: float, policy: RotationPolicy) -> float | None:
    """When a key to be made now begins to sign; None when none is due.

    The first key signs at once: nobody can have cached a set without it.
    """
    if not keys:
        return now
    newest = in_order(keys)[-1]
    due = newest.active_at + policy.period
    if newest.active_at > now or due - policy.publish_ahead > now:
        return None
    return max(due, now + policy.publish_ahead)


def pending(keys: Sequence[K], now: float) -> K | None:
    """The published key that does not sign yet, if there is one."""
    waiting = [key for key in in_order(keys) if key.active_at > now]
    return waiting[0] if waiting else None
