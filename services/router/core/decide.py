"""Which backend, or which refusal, and why: one pure function.

Order: the preferred tier while a backend there can meet the objective, else the
next tier that the request allows, else wait while capacity exists, else refuse.
"""

from __future__ import annotations

from random import Random

from services.router.core import prediction
from services.router.core.values import (
    Backend,
    Candidate,
    Decision,
    Dispatch,
    Health,
    Overflow,
    Pool,
    Refusal,
    Refuse,
    Request,
    Resume,
    Wait,
)

# Predictions err; a backend must be better than the limit by this factor.
TTFT_MARGIN = 1.3


def decide(
    request: Request,
    pool: Pool,
    now: float,
    random: Random,
    *,
    default_ttft_slo: float = 10.0,
) -> Decision:
    """Decides one request against one snapshot.

    `now` is on the clock of the snapshot's `cooling_until`, in seconds. Equal
    scores are broken by `random`. `default_ttft_slo` steers requests without a
    limit of their own towards another tier, but never refuses them.
    """
    serving = [backend for backend in pool.backends if request.model in backend.models]
    weighed = sorted(
        ((_weigh(request, b, now, default_ttft_slo), random.random(), b) for b in serving),
        key=lambda entry: (entry[0].objection != "", entry[0].score, entry[1]),
    )
    candidates = tuple(entry[0] for entry in weighed)
    if not serving:
        why = f"no backend serves {request.model!r}"
        return Decision(Refuse(Refusal.MODEL_UNKNOWN, why), ())
    preferred = request.residency.value[0]
    for tier in request.residency.value:
        best = next((c for c in candidates if c.tier is tier and c.feasible), None)
        if best is not None:
            overflow = None
            if tier is not preferred:
                overflow = _overflow(request, [b for b in serving if b.tier is preferred], now)
            return Decision(
                Dispatch(best.backend_id, tier, best.predicted_ttft, overflow), candidates
            )
    return Decision(_without_feasible(request, candidates, serving, now), candidates)


def _weigh(request: Request, backend: Backend, now: float, default_ttft_slo: float) -> Candidate:
    ttft = prediction.time_to_first_token(backend, request.prompt_tokens)
    free = prediction.has_free_slot(backend)
    objection = _standing_objection(request, backend, now)
    slo = request.ttft_slo if request.ttft_slo is not None else default_ttft_slo
    if not objection and not free:
        objection = "busy: every slot is taken"
    elif not objection and TTFT_MARGIN * ttft > slo:
        objection = f"too slow: {ttft:.3f} s expected to the first token"
    return Candidate(
        backend_id=backend.id,
        tier=backend.tier,
        objection=objection,
        score=prediction.score(backend, request.prompt_tokens),
        predicted_ttft=ttft,
        predicted_tpot=prediction.time_per_output_token(backend),
        free_slot=free,
    )


def _standing_objection(request: Request, backend: Backend, now: float) -> str:
    """Why waiting for a free slot there would not help, or nothing."""
    if backend.tier not in request.residency.value:
        return f"not allowed: the request's residency excludes {backend.tier.value}"
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
    able = backend.resumes.get(request.model, frozenset())
    if request.resume is not Resume.FRESH and request.resume not in able:
        return f"cannot go on after given {request.resume.value}"
    return ""


def _overflow(request: Request, preferred: list[Backend], now: float) -> Overflow:
    if not preferred:
        return Overflow.ABSENT
    objections = [_standing_objection(request, backend, now) for backend in preferred]
    if not all(objections):
        return Overflow.SATURATED
    if any(backend.id in request.tried for backend in preferred):
        return Overflow.FAILED
    return Overflow.UNHEALTHY


def _without_feasible(
    request: Request, candidates: tuple[Candidate, ...], serving: list[Backend], now: float
) -> Dispatch | Wait | Refuse:
    """Nothing meets the objective: a late start where nobody asked for an early one, or wait."""
    open_to_it = {b.id: b for b in serving if not _standing_objection(request, b, now)}
    for tier in request.residency.value:
        for candidate in candidates:
            backend = open_to_it.get(candidate.backend_id)
            if backend is None or candidate.tier is not tier or not candidate.free_slot:
                continue
            if request.ttft_slo is None:
                overflow = None
                if tier is not request.residency.value[0]:
                    overflow = Overflow.SATURATED
                return Dispatch(backend.id, tier, candidate.predicted_ttft, overflow)
    if open_to_it:
        return Wait(f"{len(open_to_it)} backends serve it, all of them busy")
    if request.resume is not Resume.FRESH:
        return Refuse(Refusal.CANNOT_RESUME, "no other backend can go on with this answer")
    allowed = [t.value for t in request.residency.value]
    known = [b for b in serving if b.tier.value in allowed]
    if not known:
        why = f"{request.model!r} is not served in the allowed tier ({', '.join(allowed)})"
    else:
        why = f"none of the {len(known)} backends of {request.model!r} can take it now"
    return Refuse(Refusal.NO_BACKEND, why)


def wait_limit(request: Request, longest: float) -> float:
    """Seconds that a request may wait for capacity."""
    return longest if request.ttft_slo is None else min(longest, request.ttft_slo)


def open_backends(request: Request, pool: Pool, now: float) -> list[Backend]:
    """Backends that would answer a small question about a model now, whatever their load.

    Ordered by the request's preference of tiers, then by load.
    """
    order = request.residency.value
    serving = [
        backend
        for backend in pool.backends
        if request.model in backend.models and not _standing_objection(request, backend, now)
    ]
    return sorted(serving, key=lambda b: (order.index(b.tier), prediction.present(b), b.id))
