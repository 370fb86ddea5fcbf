"""Which backend, or which refusal, and why: one pure function.

Order: the preferred tier while a backend there can meet the objective, now or once a slot comes
free; else the next tier that the request allows; else wait while capacity exists; else refuse.
What each backend would be for the request is weighed in weighing.py.
"""

from __future__ import annotations

from math import inf
from random import Random

from services.router.core.feasibility import cost_of, is_about_money, standing_objection
from services.router.core.prediction import outlook
from services.router.core.ranking import Choice
from services.router.core.values import (
    Backend,
    Decision,
    Dispatch,
    Overflow,
    Pool,
    Refusal,
    Refuse,
    Request,
    Residency,
    Resume,
    Terms,
    Tier,
    Verdict,
    Wait,
)
from services.router.core.weighing import Weighing

PATIENCE_S = 0.15
"""Those who wait are decided again at least this often: with each report of a busy backend."""


def choose(request: Request, pool: Pool, terms: Terms, now: float, random: Random) -> Verdict:
    """Decides one request against one snapshot.

    `now` is on the clock of the snapshot's times, in seconds. Equal scores are broken by `random`.
    The objective in `terms` steers requests without a limit of their own towards another tier, but
    never refuses them.
    """
    return _Decider(request, terms, Weighing(request, pool, terms, now, random)).verdict()


def decide(request: Request, pool: Pool, terms: Terms, now: float, random: Random) -> Decision:
    """What `choose` says, and all that it weighed: for people who ask why."""
    weighing = Weighing(request, pool, terms, now, random)
    verdict = _Decider(request, terms, weighing).verdict()
    chosen = verdict.backend_id if isinstance(verdict, Dispatch) else ""
    candidates = [weighing.weigh(backend) for backend in weighing.serving]
    candidates.sort(key=lambda c: (c.objection != "", c.backend_id != chosen, c.score))
    return Decision(verdict, tuple(candidates))


class _Decider:
    """One decision on its way."""

    __slots__ = ("_request", "_terms", "_weighing")

    def __init__(self, request: Request, terms: Terms, weighing: Weighing) -> None:
        self._request = request
        self._terms = terms
        self._weighing = weighing

    def verdict(self) -> Verdict:
        """What is to be done with the request."""
        request, weighing = self._request, self._weighing
        if not weighing.serving:
            return Refuse(Refusal.MODEL_UNKNOWN, f"no backend serves {request.model!r}")
        if request.overflowing and request.residency is Residency.LOCAL_FIRST:
            # An open valve closes late: local must be better than good enough to take it back.
            weighing.leave = self._terms.overflow.leave
            found = self._in_time()
            if found is not None:
                return found
            # Nobody takes the excess: what is good enough locally is better than to wait for more.
            weighing.leave = 1.0
        return self._in_time() or self._without_feasible()

    def _in_time(self) -> Verdict | None:
        """Where the objective is met, now or once a local slot comes free; else None."""
        weighing = self._weighing
        tiers = self._request.residency.tiers
        for tier in tiers:
            found = weighing.best(tier, weighing.slo, weighing.tpot)
            if found is not None:
                return self._dispatch(found, tier)
            if tier is Tier.LOCAL and len(tiers) > 1 and tier is tiers[0]:
                # One that waits here may go to whoever is free first; one sent away is paid for.
                expected = None if self._request.impatient else weighing.soonest()
                if expected is not None:
                    may_leave = weighing.cheapest(weighing.slo - PATIENCE_S) is not None
                    # The last chance to be in time in the cloud is taken.
                    if may_leave or weighing.cheapest(weighing.slo) is None:
                        why = "a local slot is expected in time"
                        return Wait(why, expected, may_leave=may_leave)
        return None

    def _missing_money(self) -> int:
        """What a budget would have to hold for the cheapest of those that it does not cover."""
        request, terms = self._request, self._terms
        if request.budget is None:
            return 0
        costs = [
            cost
            for backend in self._weighing.serving
            if is_about_money(self._weighing.objection(backend))
            and (cost := cost_of(request, backend, terms)) is not None
            and (request.max_cost is None or cost <= request.max_cost)
        ]
        return min(costs, default=0)

    def _dispatch(self, found: Choice, tier: Tier, *, late: bool = False) -> Dispatch:
        request, terms, weighing = self._request, self._terms, self._weighing
        preferred = request.residency.tiers[0]
        overflow = None
        # One that names its backend leaves no tier for want of a place there.
        if tier is not preferred and not request.backend_id:
            overflow = self._overflow(preferred)
        backend = found.backend
        cost = (cost_of(request, backend, terms) or 0) if tier is Tier.CLOUD else 0
        rules = terms.overflow
        comfortable = (
            rules.ttft_margin * rules.leave * found.ttft <= weighing.slo
            and rules.tpot_margin * rules.leave * outlook(backend).tpot <= weighing.tpot
        )
        tokens = weighing.uncached(backend)
        return Dispatch(backend.id, tier, found.ttft, overflow, tokens, cost, comfortable, late)

    def _overflow(self, preferred: Tier) -> Overflow:
        weighing = self._weighing
        there = [backend for backend in weighing.serving if backend.tier is preferred]
        if not there:
            return Overflow.ABSENT
        if not all(map(weighing.objection, there)):
            return Overflow.SATURATED
        if any(backend.id in self._request.tried for backend in there):
            return Overflow.FAILED
        return Overflow.UNHEALTHY

    def _without_feasible(self) -> Verdict:
        """Nothing is in time: a late start where nobody asked for an early one, or wait."""
        request, serving = self._request, self._weighing.serving
        objections = list(map(self._weighing.objection, serving))
        tiers = request.residency.tiers
        if request.ttft_slo is None:
            for tier in tiers:
                found = self._weighing.best(tier, inf, inf)
                if found is not None:
                    return self._dispatch(found, tier, late=True)
        if not all(objections):
            could = objections.count("")
            expected = min(
                outlook(backend).wait or outlook(backend).turnover
                for backend, objection in zip(serving, objections, strict=True)
                if not objection
            )
            why = f"{could} backends serve it, all of them busy"
            return Wait(why, expected, self._missing_money())
        if money := next(filter(is_about_money, objections), ""):
            why = f"only the cloud could take it, but it is {money}"
            return Refuse(Refusal.NO_BUDGET, why, self._missing_money())
        if request.resume is not Resume.FRESH:
            return Refuse(Refusal.CANNOT_RESUME, "no other backend can go on with this answer")
        if not any(backend.tier in tiers for backend in serving):
            allowed = ", ".join(tier.value for tier in tiers)
            why = f"{request.model!r} is not served in the allowed tier ({allowed})"
            return Refuse(Refusal.NO_BACKEND, why)
        if request.residency is Residency.CLOUD_ONLY and not request.cloud_allowed:
            return Refuse(Refusal.NOT_ALLOWED, "the policy keeps this tenant's requests local")
        why = f"none of the {len(serving)} backends of {request.model!r} can take it now"
        return Refuse(Refusal.NO_BACKEND, why)


def open_backends(request: Request, pool: Pool, terms: Terms, now: float) -> list[Backend]:
    """Backends that would answer a small question about a model now, whatever their load.

    Ordered by the request's preference of tiers, then by load.
    """
    order = request.residency.tiers
    serving = [
        backend
        for backend in pool.backends
        if terms.name_in(backend.tier) in backend.models
        and not standing_objection(request, backend, terms, now)
    ]
    return sorted(serving, key=lambda b: (order.index(b.tier), outlook(b).present, b.id))
