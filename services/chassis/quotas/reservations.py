"""What a request is counted under, and what it has taken of its quotas until it is settled. Pure.

Where buckets are and who decides is gate.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.quotas import gcra
from services.chassis.quotas.gcra import Charge
from services.chassis.quotas.rules import QuotaRule, Subject, Unit

Corrections: TypeAlias = tuple[tuple[str, int], ...]
"""Buckets and by how much they move, in microseconds; see Buckets.settle."""


class Counted(NamedTuple):
    """A rule that a request is counted under, whose it is, its bucket, and so much of its unit."""

    rule: QuotaRule
    whose: str
    key: str
    amount: int

    def takes(self, amount: int, shares: int) -> int:
        """Microseconds that an amount takes of its bucket: of a part of the quota the more."""
        return gcra.increment(amount, self.rule.limit, self.rule.period, shares)


def counted_under(principal: Principal, model: str, tokens: int) -> tuple[Counted, ...]:
    """What one request is counted under; of two rules for one bucket the later.

    More than a burst is never asked for: else it could never run.
    """
    found: dict[str, Counted] = {}
    for rule in principal.quotas:
        amount = tokens if rule.unit is Unit.TOKENS else 1
        if rule.unit is not Unit.COST and amount and rule.concerns(model):
            name = principal.tenant if rule.subject is Subject.TENANT else principal.client_id
            whose = f"{rule.subject}:{name}"
            # In braces what Redis Cluster hashes: all buckets of a request are in one place.
            key = (
                f"{{tenant:{quote(principal.tenant, safe='')}}}:{quote(whose, safe=':')}"
                f":{rule.unit}:{rule.period}:{rule.model}"
            )
            found[key] = Counted(rule, whose, key, min(amount, rule.burst))
    return tuple(found.values())


def charges(counted: Iterable[Counted], shares: int = 1) -> tuple[Charge, ...]:
    """What is to be taken, of the whole quota or of one of so many parts."""
    return tuple(
        [
            Charge(
                each.key,
                each.takes(each.amount, shares),
                gcra.tolerance(each.rule.burst, each.rule.limit, each.rule.period),
            )
            for each in counted
        ]
    )


class Reservation:
    """What one request has taken. It ends once; ending it again does nothing."""

    __slots__ = ("_counted", "_ended", "_shares", "_tokens", "shared")

    def __init__(self, counted: tuple[Counted, ...], shares: int, *, shared: bool) -> None:
        """`shared`: taken from the buckets of all processes; else of one of so many parts."""
        self._counted = counted
        self._shares = shares
        self._ended = False
        self._tokens: int | None = None
        self.shared = shared

    def end(self, tokens: int | None) -> Corrections:
        """The corrections after so many tokens; after None, nothing ran."""
        if self._ended:
            return ()
        self._ended, self._tokens = True, tokens
        return self._corrections()

    def becomes_shared(self) -> Corrections:
        """The buckets of all know of it after all; the corrections there, if it has ended."""
        self.shared, self._shares = True, 1
        return self._corrections() if self._ended else ()

    def _corrections(self) -> Corrections:
        found = []
        for each in self._counted:
            used = each.amount
            if self._tokens is None:
                used = 0
            elif each.rule.unit is Unit.TOKENS:
                used = self._tokens
            change = each.takes(used, self._shares) - each.takes(each.amount, self._shares)
            if change:
                found.append((each.key, change))
        return tuple(found)


def exceeded(counted: Iterable[Counted], waits: Sequence[int]) -> Fault:
    """Fault QUOTA_EXCEEDED for the rules that have to wait, so many microseconds."""
    found = [
        (each.whose, _told(each.rule)) for each, wait in zip(counted, waits, strict=True) if wait
    ]
    return Fault(
        errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
        "a quota is used up: " + "; ".join(f"{whose}, {what}" for whose, what in found),
        retry_after=max(waits) / gcra.PER_SECOND,
        quota=found,
    )


def _told(rule: QuotaRule) -> str:
    what = f"{rule.limit} {rule.unit} in {rule.period} s"
    return f"{what} of {rule.model}" if rule.model else what
