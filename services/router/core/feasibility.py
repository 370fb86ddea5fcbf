"""Why a backend may not have a request, or that it may. Pure.

Objections are sentences for people, empty where there is none.
"""

from __future__ import annotations

from services.router.core.values import Backend, Health, Request, Resume, Terms, Tier

ASSUMED_OUTPUT = 4096
"""Tokens that a request without max_tokens is expected to generate at most, for its cost."""


def standing_objection(request: Request, backend: Backend, terms: Terms, now: float) -> str:
    """Why waiting for a free slot there would not help, or nothing."""
    tier = backend.tier
    if tier not in request.residency.tiers:
        return f"not allowed: the request's residency excludes {tier.value}"
    if request.backend_id and backend.id != request.backend_id:
        return "not asked for: the request names another backend"
    if backend.health is not Health.READY:
        return f"not ready: {backend.health.value}"
    if backend.drained:
        return "drained by an operator"
    if backend.id in request.tried:
        return "failed this request before"
    if backend.cooling_until > now:
        return "resting after failures"
    if request.resume is not Resume.FRESH and (no := _cannot_go_on(request, backend, terms)):
        return no
    if tier is Tier.CLOUD:
        return _may_not_leave(request, backend, terms)
    return ""


def cost_of(request: Request, backend: Backend, terms: Terms) -> int | None:
    """What the answer may cost there at most, in micro-USD; None when that is not known."""
    if backend.tier is Tier.LOCAL:
        return 0
    prices = backend.prices.get(terms.cloud)
    if prices is None:
        return None
    output = request.max_output or ASSUMED_OUTPUT
    prompt = max(request.prompt_tokens, request.billed_tokens)
    return -(-(prompt * prices.input + output * prices.output) // 1_000_000)


def _cannot_go_on(request: Request, backend: Backend, terms: Terms) -> str:
    able = backend.resumes.get(terms.name_in(backend.tier), frozenset())
    if request.resume not in able:
        return f"cannot go on after given {request.resume.value}"
    begun = request.begun_in
    if begun is not None and begun is not backend.tier and not terms.continue_in_cloud:
        return "another model: the policy says that the tiers differ"
    return ""


def _may_not_leave(request: Request, backend: Backend, terms: Terms) -> str:
    if not request.cloud_allowed:
        return "not allowed: the policy keeps this tenant's requests local"
    if not terms.overflow.enabled and request.residency.tiers[0] is Tier.LOCAL:
        return "not allowed: the policy has no overflow for this model"
    limit = request.max_cost
    if request.budget is not None and (limit is None or request.budget < limit):
        limit = request.budget
    if limit is None:
        return ""
    cost = cost_of(request, backend, terms)
    if cost is None:
        return "too expensive: its prices are not known"
    if cost > limit:
        of = "the request allows" if limit == request.max_cost else "the budget has left"
        return f"too expensive: up to {cost} µUSD, and {of} {limit}"
    return ""


def is_about_money(objection: str) -> bool:
    """Whether only the cost is in the way."""
    return objection.startswith("too expensive")
