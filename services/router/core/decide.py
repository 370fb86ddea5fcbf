"""Which backend, or which refusal, and why: one pure function.

Order: the preferred tier while a backend there can meet the objective, now or once a slot comes
free; else the next tier that the request allows; else wait while capacity exists; else refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import inf
from random import Random

from services.router.core.feasibility import cost_of, is_about_money, standing_objection
from services.router.core.policy import Algorithm
from services.router.core.prediction import Outlook, outlook, score, time_to_first_token
from services.router.core.prefix import cached_tokens
from services.router.core.ranking import RANKINGS, Choice
from services.router.core.ring import Ring
from services.router.core.slow_start import warmth
from services.router.core.values import (
    Backend,
    Candidate,
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

PATIENCE_S = 0.15
"""Those who wait are decided again at least this often: with each report of a busy backend."""

_NOTHING: Mapping[str, int] = {}


def choose(request: Request, pool: Pool, terms: Terms, now: float, random: Random) -> Verdict:
    """Decides one request against one snapshot.

    `now` is on the clock of the snapshot's times, in seconds. Equal scores are broken by `random`.
    The objective in `terms` steers requests without a limit of their own towards another tier, but
    never refuses them.
    """
    return _Decider(request, pool, terms, now, random).verdict()


def decide(request: Request, pool: Pool, terms: Terms, now: float, random: Random) -> Decision:
    """What `choose` says, and all that it weighed: for people who ask why."""
    decider = _Decider(request, pool, terms, now, random)
    verdict = decider.verdict()
    chosen = verdict.backend_id if isinstance(verdict, Dispatch) else ""
    candidates = [decider.weigh(backend) for backend in decider.serving]
    candidates.sort(key=lambda c: (c.objection != "", c.backend_id != chosen, c.score))
    return Decision(verdict, tuple(candidates))


class _Decider:
    """One decision on its way."""

    __slots__ = (
        *("_cached", "_leave", "_now", "_pool", "_random", "_request", "_slo", "_terms"),
        *("_tpot", "serving"),
    )

    def __init__(
        self, request: Request, pool: Pool, terms: Terms, now: float, random: Random
    ) -> None:
        self._request = request
        self._pool = pool
        self._terms = terms
        self._now = now
        self._random = random
        local, cloud = terms.local, terms.cloud
        self.serving = [
            backend
            for backend in pool.backends
            if (local if backend.tier is Tier.LOCAL else cloud) in backend.models
        ]
        slo = request.ttft_slo
        if slo is None:
            slo = terms.objective.ttft - request.waited
        self._slo = slo
        # An open valve closes late: while it is open, local must be better than good enough.
        spills = request.overflowing and request.residency is Residency.LOCAL_FIRST
        self._leave = terms.overflow.leave if spills else 1.0
        self._tpot = terms.objective.tpot
        self._cached = self._hits()

    def verdict(self) -> Verdict:
        """What is to be done with the request."""
        if not self.serving:
            return Refuse(Refusal.MODEL_UNKNOWN, f"no backend serves {self._request.model!r}")
        found = self._in_time()
        if found is None and self._leave != 1.0:
            # Nobody takes the excess: what is good enough locally is better than to wait for more.
            self._leave = 1.0
            found = self._in_time()
        return self._without_feasible() if found is None else found

    def _in_time(self) -> Verdict | None:
        """Where the objective is met, now or once a local slot comes free; else None."""
        tiers = self._request.residency.tiers
        for tier in tiers:
            found = self._best(tier, self._slo, self._tpot)
            if found is not None:
                return self._dispatch(found, tier)
            if tier is Tier.LOCAL and len(tiers) > 1 and tier is tiers[0]:
                # One that waits here may go to whoever is free first; one sent away is paid for.
                expected = self._soonest()
                if expected is not None and not self._is_last_chance():
                    return Wait("a local slot is expected in time", expected)
        return None

    def weigh(self, backend: Backend) -> Candidate:
        """A backend as a candidate, for people."""
        ahead = outlook(backend)
        hits = self._saved(backend)
        tokens = self._request.prompt_tokens - hits
        ttft = self._expected_ttft(backend, ahead, tokens)
        objection = standing_objection(self._request, backend, self._terms, self._now)
        objection = objection or self._passing_objection(backend, ahead, tokens, ttft)
        return Candidate(
            backend_id=backend.id,
            tier=backend.tier,
            objection=objection,
            score=self._score(backend, ahead, tokens),
            predicted_ttft=ttft,
            predicted_tpot=ahead.tpot,
            free_slot=_has_room(ahead, tokens),
            cached_tokens=hits,
            cost=cost_of(self._request, backend, self._terms) or 0,
        )

    def _passing_objection(self, backend: Backend, ahead: Outlook, tokens: int, ttft: float) -> str:
        if not _has_room(ahead, tokens):
            full = "every slot is taken" if not ahead.free_slot else "its KV cache is full"
            return f"busy: {full}"
        if self._ttft_margin(backend.tier) * ttft > self._slo:
            return f"too slow: {ttft:.3f} s expected to the first token"
        if backend.tier is Tier.LOCAL and self._tpot_margin() * ahead.tpot > self._tpot:
            return f"too slow: {ahead.tpot * 1e3:.1f} ms expected for each further token"
        return ""

    def _ttft_margin(self, tier: Tier) -> float:
        """How many times a predicted time to the first token must fit into its limit."""
        margin = self._terms.overflow.ttft_margin
        return margin * self._leave if tier is Tier.LOCAL else margin

    def _tpot_margin(self) -> float:
        return self._terms.overflow.tpot_margin * self._leave

    def _hits(self) -> Mapping[str, int]:
        """Tokens of the prompt that each backend is thought to hold."""
        request = self._request
        tokens = request.prompt_tokens
        if request.blocks and self._pool.prefixes is not None:
            found = self._pool.prefixes.match(request.blocks)
            hits = {who: cached_tokens(blocks, tokens) for who, blocks in found.items()}
        elif request.affinity:
            hits = {}
        else:
            return _NOTHING
        if request.affinity:
            # What shares a key is thought to share its prompt too, wherever the key belongs.
            local = tuple(sorted(b.id for b in self.serving if b.tier is Tier.LOCAL))
            hits[_ring(local).holder(request.affinity)] = tokens - 1
        return hits

    def _saved(self, backend: Backend) -> int:
        return self._cached.get(backend.id, 0)

    def _best(self, tier: Tier, slo: float, tpot: float) -> Choice | None:
        """The backend of the tier that the algorithm likes best among those that meet the limits.

        Nobody predicts a provider's time per token: `tpot` is for local ones.
        """
        if tier is Tier.CLOUD:
            return self._cheapest(slo)
        if self._terms.algorithm is Algorithm.PREDICTED:
            return self._lowest_score(slo, tpot)
        feasible = list(self._feasible(tier, slo, tpot))
        if not feasible:
            return None
        ranking = RANKINGS[self._terms.algorithm]
        return ranking(feasible, self._terms, self._pool.turn, self._random)

    def _lowest_score(self, slo: float, tpot: float) -> Choice | None:
        """As the ranking would; whoever cannot win is not looked at any closer."""
        request, terms, now = self._request, self._terms, self._now
        prompt, cached = request.prompt_tokens, self._cached
        ramp = terms.slow_start
        ttft_margin, tpot_margin = self._ttft_margin(Tier.LOCAL), self._tpot_margin()
        best: Choice | None = None
        lowest, equals = inf, 1
        for backend in self.serving:
            if backend.tier is not Tier.LOCAL:
                continue
            ahead = backend.outlook or outlook(backend)
            tokens = prompt - cached.get(backend.id, 0) if cached else prompt
            mine = ahead.score + ahead.per_token * tokens
            if ramp and now - backend.ready_since < ramp:
                mine /= warmth(now - backend.ready_since, ramp)
            if mine > lowest or not ahead.free_slot or tokens > ahead.kv_free:
                continue
            if tpot_margin * ahead.tpot > tpot:
                continue
            time = time_to_first_token(ahead, tokens)
            if ttft_margin * time > slo or standing_objection(request, backend, terms, now):
                continue
            if mine == lowest:
                equals += 1
                if self._random.random() * equals >= 1.0:
                    continue
            else:
                equals = 1
            best, lowest = Choice(backend, mine, time), mine
        return best

    def _feasible(self, tier: Tier, slo: float, tpot: float) -> Iterable[Choice]:
        margin, tpot_margin = self._ttft_margin(tier), self._tpot_margin()
        for backend in self.serving:
            if backend.tier is not tier:
                continue
            ahead = outlook(backend)
            tokens = self._request.prompt_tokens - self._saved(backend)
            if not _has_room(ahead, tokens):
                continue
            time = self._expected_ttft(backend, ahead, tokens)
            if margin * time > slo or tpot_margin * ahead.tpot > tpot:
                continue
            if not standing_objection(self._request, backend, self._terms, self._now):
                yield Choice(backend, self._score(backend, ahead, tokens), time)

    def _cheapest(self, slo: float) -> Choice | None:
        """Of the cloud's: the lowest cost, an unknown one last, then the fewest requests."""
        feasible = list(self._feasible(Tier.CLOUD, slo, inf))
        if not feasible:
            return None
        self._random.shuffle(feasible)
        request, terms = self._request, self._terms

        def expense(choice: Choice) -> tuple[float, int]:
            cost = cost_of(request, choice.backend, terms)
            return (inf if cost is None else cost, outlook(choice.backend).present)

        return min(feasible, key=expense)

    def _score(self, backend: Backend, ahead: Outlook, tokens: int) -> float:
        mine = score(ahead, tokens)
        ramp = self._terms.slow_start
        return mine / warmth(self._now - backend.ready_since, ramp) if ramp else mine

    def _expected_ttft(self, backend: Backend, ahead: Outlook, tokens: int) -> float:
        """For a local backend its model's word, for a provider what was seen of it."""
        if backend.tier is Tier.CLOUD:
            return backend.ttft_p95 + backend.round_trip
        return time_to_first_token(ahead, tokens)

    def _soonest(self) -> float | None:
        """How long until a local slot is free, when that is early enough; else None."""
        request = self._request
        ttft_margin, tpot_margin = self._ttft_margin(Tier.LOCAL), self._tpot_margin()
        best: float | None = None
        for backend in self.serving:
            if backend.tier is not Tier.LOCAL:
                continue
            ahead = outlook(backend)
            tokens = request.prompt_tokens - self._saved(backend)
            if _has_room(ahead, tokens) or tpot_margin * ahead.tpot > self._tpot:
                continue
            time = time_to_first_token(ahead, tokens)
            if not ahead.wait:
                time += ahead.turnover
            if ttft_margin * time > self._slo:
                continue
            if standing_objection(request, backend, self._terms, self._now):
                continue
            wait = ahead.wait or ahead.turnover
            best = wait if best is None else min(best, wait)
        return best

    def _is_last_chance(self) -> bool:
        """Whether the cloud would still be in time now, but not if asked after a little wait."""
        if self._cheapest(self._slo - PATIENCE_S) is not None:
            return False
        return self._cheapest(self._slo) is not None

    def _missing_money(self) -> int:
        """What a budget would have to hold for the cheapest of those that it does not cover."""
        request, terms = self._request, self._terms
        if request.budget is None:
            return 0
        costs = [
            cost
            for backend in self.serving
            if is_about_money(standing_objection(request, backend, terms, self._now))
            and (cost := cost_of(request, backend, terms)) is not None
            and (request.max_cost is None or cost <= request.max_cost)
        ]
        return min(costs, default=0)

    def _dispatch(self, found: Choice, tier: Tier, *, late: bool = False) -> Dispatch:
        request, terms = self._request, self._terms
        preferred = request.residency.tiers[0]
        overflow = None
        # One that names its backend leaves no tier for want of a place there.
        if tier is not preferred and not request.backend_id:
            overflow = self._overflow(preferred)
        backend = found.backend
        cost = (cost_of(request, backend, terms) or 0) if tier is Tier.CLOUD else 0
        rules = terms.overflow
        comfortable = (
            rules.ttft_margin * rules.leave * found.ttft <= self._slo
            and rules.tpot_margin * rules.leave * outlook(backend).tpot <= self._tpot
        )
        tokens = request.prompt_tokens - self._saved(backend)
        return Dispatch(backend.id, tier, found.ttft, overflow, tokens, cost, comfortable, late)

    def _overflow(self, preferred: Tier) -> Overflow:
        there = [backend for backend in self.serving if backend.tier is preferred]
        if not there:
            return Overflow.ABSENT
        request, terms, now = self._request, self._terms, self._now
        if not all(standing_objection(request, backend, terms, now) for backend in there):
            return Overflow.SATURATED
        if any(backend.id in request.tried for backend in there):
            return Overflow.FAILED
        return Overflow.UNHEALTHY

    def _without_feasible(self) -> Verdict:
        """Nothing is in time: a late start where nobody asked for an early one, or wait."""
        request, serving = self._request, self.serving
        objections = [
            standing_objection(request, backend, self._terms, self._now) for backend in serving
        ]
        tiers = request.residency.tiers
        if request.ttft_slo is None:
            for tier in tiers:
                found = self._best(tier, inf, inf)
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


@lru_cache(maxsize=64)
def _ring(backends: tuple[str, ...]) -> Ring:
    return Ring(backends)


def _has_room(ahead: Outlook, tokens: int) -> bool:
    return ahead.free_slot and tokens <= ahead.kv_free


def wait_limit(request: Request, longest: float) -> float:
    """Seconds that a request may wait for capacity."""
    return longest if request.ttft_slo is None else min(longest, request.ttft_slo)


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
