"""The money of one request: what it may cost, set aside before it is sent, charged at its end.

A handle for the call to hold: whatever becomes of the request, `settle` or `release` ends it, and
what comes later does nothing. Which accounts pay, budgets.py knows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Self

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.budgets.ledger import Reservation
from services.chassis.errors import Fault
from services.chassis.quotas.money import NO_QUOTAS, Quotas, is_quota
from services.cloud_proxy import estimates
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.budget_rules import ALL
from services.cloud_proxy.budgets import Budgets, Lack, Shortage
from services.cloud_proxy.config import Route

_MAY_BE_BILLED = frozenset({FailureKind.FAILED, FailureKind.TIMED_OUT, FailureKind.BROKEN})

_WHY = {
    Lack.TOO_SMALL: "is smaller than what this request may cost",
    Lack.UNANSWERED: "cannot be asked for now, so nothing more may be spent of it",
    Lack.SET_ASIDE: "is set aside for requests that are running",
    Lack.USED_UP: "does not cover what this request may cost",
}


class Money:
    """What one request spends. One reservation at a time, for the provider that is asked next."""

    __slots__ = ("_budgets", "_owed", "_quotas", "_reservation", "_tenant")

    def __init__(self, budgets: Budgets, tenant: str, quotas: Quotas = NO_QUOTAS) -> None:
        self._budgets = budgets
        self._tenant = tenant
        self._quotas = quotas
        self._reservation: Reservation | None = None
        self._owed = 0

    def is_limited(self, provider: str) -> bool:
        """Whether a budget applies there; else there is no need to know what a request costs."""
        return bool(self._quotas) or self._budgets.limits(self._tenant, provider)

    async def reserve(self, provider: str, amount: int | None) -> None:
        """Sets `amount` micro-USD aside, waiting a moment if a lease is on its way. What was set
        aside before is released.

        Raises Fault BUDGET_EXHAUSTED when a budget does not cover it, and UNSUPPORTED where a
        budget applies and the amount is not known (None).
        """
        self.release()
        if amount is None:
            if self.is_limited(provider):
                raise _not_known(provider)
            return
        found = await self._budgets.reserve_soon(self._tenant, provider, amount, self._quotas)
        if found is None:
            lacking = self._budgets.shortages(self._tenant, provider, amount, self._quotas)
            raise _exhausted(lacking, amount)
        self._reservation = found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def owe(self, cost: int) -> None:
        """An attempt that failed may have cost so much; it is charged with what comes after it."""
        self._owed += cost

    def settle(self, cost: int) -> None:
        """The answer cost so much, whole or not."""
        owed, self._owed = self._owed, 0
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        if cost + owed:
            self._budgets.settle(reservation, cost + owed)
        else:
            self._budgets.release(reservation)

    def release(self) -> None:
        """There was no answer. What failed attempts may have cost is charged all the same."""
        self.settle(0)


def cost_at_most(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> int | None:
    """The most that a request as it leaves may cost there, in micro-USD; None when the prices or
    the longest answer are not known. `max_tokens` overrides the request's own."""
    prices = route.model.prices
    if prices is None:
        return None
    output = estimates.output_tokens_at_most(request, route, max_tokens)
    if not output and (prices.output or (prices.long_prompt and prices.long_prompt.output)):
        return None
    return estimates.cost_at_most(request, prices, output)


def embedding_cost_at_most(request: model_pb2.EmbedRequest, route: Route) -> int | None:
    """The most that vectors may cost, in micro-USD; None when the prices are not known."""
    prices = route.model.prices
    if prices is None:
        return None
    texts = pb.GenerateRequest(prompt="".join(request.inputs))
    return estimates.cost_at_most(texts, prices, 0)


def may_be_billed(failure: ProviderFailure, received: int) -> bool:
    """Whether an attempt that failed after so many bytes of output may cost something. A refusal
    by status bills nothing; a failure in the middle may have, and one after output has."""
    return bool(received) or (failure.http_status is None and failure.kind in _MAY_BE_BILLED)


def _not_known(provider: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        f"a budget applies to {provider}, and what this request may cost there is not known: the "
        "route needs prices, and the request max_tokens or the route max_output or context_length",
        metadata={"feature": "budgets", "provider": provider},
    )


def _exhausted(shortages: list[Shortage], amount: int) -> Fault:
    """All that is lacking; the caller is told to wait for the last of them."""
    found = [
        (f"cloud budget {s.account}", f"{_told(s)} {_WHY[s.lack]}{_until(s)}") for s in shortages
    ]
    if not found:
        # It has come since, too late for this request.
        found = [("cloud budget", "the budget was not there in time")]
    return Fault(
        errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        "; ".join(description for _, description in found),
        metadata={
            "accounts": ",".join(s.account for s in shortages),
            "needed_microusd": str(amount),
        },
        retry_after=max((s.retry_after for s in shortages), default=0.0),
        quota=found,
    )


def _told(shortage: Shortage) -> str:
    if shortage.account == ALL:
        return "the cloud budget of all tenants together"
    if is_quota(shortage.account):
        return f"the caller's quota {shortage.account}"
    kind, _, name = shortage.account.partition(":")
    return f"the cloud budget of {kind} {name}" if name else f"the cloud budget without a {kind}"


def _until(shortage: Shortage) -> str:
    if shortage.lack is not Lack.USED_UP:
        return ""
    # Budgets' periods are aligned to the epoch, in UTC.
    return f" before {datetime.fromtimestamp(shortage.period_end, UTC):%Y-%m-%d %H:%M:%S} UTC"
