"""Which backend, or which refusal, and why: one pure function.

Order: the preferred tier while a backend there can meet the objective, else the
next tier that the request allows, else wait while capacity exists, else refuse.
"""

from __future__ import annotations

from random import Random

from services.router.core.prediction import outlook, score, time_to_first_token
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
    Tier,
    Verdict,
    Wait,
)

# Predictions err; a backend must be better than the limit by this factor.
TTFT_MARGIN = 1.3


def choose(
    request: Request,
    pool: Pool,
    now: float,
    random: Random,
    *,
    default_ttft_slo: float = 10.0,
) -> Verdict:
    """Decides one request against one snapshot.

    `now` is on the clock of the snapshot's `cooling_until`, in seconds. Equal
    scores are broken by `random`. `default_ttft_slo` steers requests without a
    limit of their own towards another tier, but never refuses them.
    """
    model = request.model
    serving = [backend for backend in pool.backends if model in backend.models]
    slo = default_ttft_slo if request.ttft_slo is None else request.ttft_slo
    tiers = request.residency.tiers
    for tier in tiers:
        found = _best(request, serving, tier, now, random, slo)
        if found is not None:
            overflow = None
            if tier is not tiers[0]:
                overflow = _overflow(request, [b for b in serving if b.tier is tiers[0]], now)
            return Dispatch(found[0].id, tier, found[1], overflow)
    if not serving:
        return Refuse(Refusal.MODEL_UNKNOWN, f"no backend serves {model!r}")
    return _without_feasible(request, serving, now, random)


def decide(
    request: Request,
    pool: Pool,
    now: float,
    random: Random,
    *,
    default_ttft_slo: float = 10.0,
) -> Decision:
    """What `choose` says, and all that it weighed: for people who ask why."""
    verdict = choose(request, pool, now, random, default_ttft_slo=default_ttft_slo)
    chosen = verdict.backend_id if isinstance(verdict, Dispatch) else ""
    candidates = [
        _weigh(request, backend, now, default_ttft_slo)
        for backend in pool.backends
        if request.model in backend.models
    ]
    candidates.sort(key=lambda c: (c.objection != "", c.score, c.backend_id != chosen))
    return Decision(verdict, tuple(candidates))


def _best(
    request: Request,
    serving: list[Backend],
    tier: Tier,
    now: float,
    random: Random,
    slo: float,
) -> tuple[Backend, float] | None:
    """The backend of the tier with the lowest score that meets the limit, and its expected time."""
    tokens = request.prompt_tokens
    best, best_score, best_time, equals = None, 0.0, 0.0, 1
    for backend in serving:
        if backend.tier is not tier:
            continue
        ahead = outlook(backend)
        mine = score(ahead, tokens)
        if not ahead.free_slot or (best is not None and mine > best_score):
            continue
        time = time_to_first_token(ahead, tokens)
        if TTFT_MARGIN * time > slo or _standing_objection(request, backend, now):
            continue
        if best is not None and mine == best_score:
            # Each of the equals is kept with the same probability.
            equals += 1
            if random.random() * equals >= 1.0:
                continue
        else:
            equals = 1
        best, best_score, best_time = backend, mine, time
    return None if best is None else (best, best_time)


def _weigh(request: Request, backend: Backend, now: float, default_ttft_slo: float) -> Candidate:
    ahead = outlook(backend)
    ttft = time_to_first_token(ahead, request.prompt_tokens)
    objection = _standing_objection(request, backend, now)
    slo = request.ttft_slo if request.ttft_slo is not None else default_ttft_slo
    if not objection and not ahead.free_slot:
        objection = "busy: every slot is taken"
    elif not objection and TTFT_MARGIN * ttft > slo:
        objection = f"too slow: {ttft:.3f} s expected to the first token"
    return Candidate(
        backend_id=backend.id,
        tier=backend.tier,
        objection=objection,
        score=score(ahead, request.prompt_tokens),
        predicted_ttft=ttft,
        predicted_tpot=ahead.step,
        free_slot=ahead.free_slot,
    )


def _standing_objection(request: Request, backend: Backend, now: float) -> str:
    """Why waiting for a free slot there would not help, or nothing."""
    if backend.tier not in request.residency.tiers:
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
    if request.resume is not Resume.FRESH:
        able = backend.resumes.get(request.model, frozenset())
        if request.resume not in able:
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
    request: Request, serving: list[Backend], now: float, random: Random
) -> Verdict:
    """Nothing meets the objective: a late start where nobody asked for an early one, or wait."""
    open_to_it = [b for b in serving if not _standing_objection(request, b, now)]
    tiers = request.residency.tiers
    if request.ttft_slo is None:
        for tier in tiers:
            late = _best(request, open_to_it, tier, now, random, float("inf"))
            if late is not None:
                overflow = None if tier is tiers[0] else Overflow.SATURATED
                return Dispatch(late[0].id, tier, late[1], overflow)
    if open_to_it:
        return Wait(f"{len(open_to_it)} backends serve it, all of them busy")
    if request.resume is not Resume.FRESH:
        return Refuse(Refusal.CANNOT_RESUME, "no other backend can go on with this answer")
    known = [b for b in serving if b.tier in tiers]
    if not known:
        allowed = ", ".join(tier.value for tier in tiers)
        why = f"{request.model!r} is not served in the allowed tier ({allowed})"
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
    order = request.residency.tiers
    serving = [
        backend
        for backend in pool.backends
        if request.model in backend.models and not _standing_objection(request, backend, now)
    ]
    return sorted(serving, key=lambda b: (order.index(b.tier), outlook(b).present, b.id))
