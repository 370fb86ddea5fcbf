"""What each backend that serves a model would be for one request: feasible, and how good. Pure.

It puts prediction, prefixes and slow start together; the order of tiers, and what is done where
nobody is feasible, is decide.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import inf
from random import Random

from services.router.core.feasibility import cost_of, standing_objection
from services.router.core.policy import Algorithm
from services.router.core.prediction import Outlook, outlook, time_to_first_token
from services.router.core.prefix import cached_tokens
from services.router.core.ranking import RANKINGS, Choice
from services.router.core.ring import Ring
from services.router.core.slow_start import warmth
from services.router.core.values import Backend, Candidate, Pool, Request, Terms, Tier

_NOTHING: Mapping[str, int] = {}
KIN_SHARE = 0.5
"""Requests of one affinity key are thought to share so much of their prompts."""


class Weighing:
    """One request against one snapshot.

    `serving` are the backends of its model; `slo` and `tpot` its limits for the first and for each
    further token, in seconds; `leave` makes local ones stricter while an overflow valve is open.
    """

    __slots__ = (
        *("_cached", "_kin", "_now", "_pool", "_random", "_request", "_terms"),
        *("leave", "serving", "slo", "tpot"),
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
        self.slo = terms.objective.ttft - request.waited if slo is None else slo
        self.tpot = terms.objective.tpot
        self.leave = 1.0
        self._cached = self._hits() if request.blocks else _NOTHING
        self._kin = self._holder_of(request.affinity) if request.affinity else ""

    def objection(self, backend: Backend) -> str:
        """Why waiting for a free slot there would not help, or nothing."""
        return standing_objection(self._request, backend, self._terms, self._now)

    def uncached(self, backend: Backend) -> int:
        """Tokens of the prompt that the backend would have to compute."""
        return self._request.prompt_tokens - self._cached.get(backend.id, 0)

    def best(self, tier: Tier, slo: float, tpot: float) -> Choice | None:
        """The backend of the tier that the algorithm likes best among those that meet the limits.

        Nobody predicts a provider's time per token: `tpot` is for local ones.
        """
        if tier is Tier.CLOUD:
            return self.cheapest(slo)
        if self._terms.algorithm is Algorithm.PREDICTED:
            return self._lowest_score(slo, tpot)
        feasible = list(self._feasible(tier, slo, tpot))
        if not feasible:
            return None
        ranking = RANKINGS[self._terms.algorithm]
        return ranking(feasible, self._terms, self._pool.turn, self._random)

    def cheapest(self, slo: float) -> Choice | None:
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

    def soonest(self) -> float | None:
        """How long until a local slot is this request's, when that is early enough; else None.

        Slots come free as answers end, at all backends together, and those ahead in the line take
        the first ones.
        """
        candidates: list[tuple[Outlook, int]] = []
        rate = 0.0
        ttft_margin, tpot_margin = self._margin(Tier.LOCAL), self._tpot_margin()
        for backend in self.serving:
            if backend.tier is not Tier.LOCAL:
                continue
            ahead = outlook(backend)
            tokens = self.uncached(backend)
            if has_room(ahead, tokens) or tpot_margin * ahead.tpot > self.tpot:
                continue
            if not self.objection(backend):
                candidates.append((ahead, tokens))
                rate += 1.0 / ahead.turnover if ahead.turnover else inf
        in_line = (self._request.ahead + 1) / rate if rate else inf
        best: float | None = None
        for ahead, tokens in candidates:
            wait = max(ahead.wait, in_line)
            time = time_to_first_token(ahead, tokens) - ahead.wait + wait
            if ttft_margin * time <= self.slo:
                best = wait if best is None else min(best, wait)
        return best

    def weigh(self, backend: Backend) -> Candidate:
        """A backend as a candidate, for people."""
        ahead = outlook(backend)
        tokens = self.uncached(backend)
        ttft = self._expected_ttft(backend, ahead, tokens)
        objection = self.objection(backend)
        objection = objection or self._passing_objection(backend, ahead, tokens, ttft)
        return Candidate(
            backend_id=backend.id,
            tier=backend.tier,
            objection=objection,
            score=self._score(backend, ahead, tokens),
            predicted_ttft=ttft,
            predicted_tpot=ahead.tpot,
            free_slot=has_room(ahead, tokens),
            cached_tokens=self._request.prompt_tokens - tokens,
            cost=cost_of(self._request, backend, self._terms) or 0,
        )

    def _passing_objection(self, backend: Backend, ahead: Outlook, tokens: int, ttft: float) -> str:
        if not has_room(ahead, tokens):
            full = "every slot is taken" if not ahead.free_slot else "its KV cache is full"
            return f"busy: {full}"
        if self._margin(backend.tier) * ttft > self.slo:
            return f"too slow: {ttft:.3f} s expected to the first token"
        if backend.tier is Tier.LOCAL and self._tpot_margin() * ahead.tpot > self.tpot:
            return f"too slow: {ahead.tpot * 1e3:.1f} ms expected for each further token"
        return ""

    def _margin(self, tier: Tier) -> float:
        """How many times a predicted time to the first token must fit into its limit.

        A provider's is no prediction but a quantile, and fits as it is.
        """
        return self._terms.overflow.ttft_margin * self.leave if tier is Tier.LOCAL else 1.0

    def _tpot_margin(self) -> float:
        return self._terms.overflow.tpot_margin * self.leave

    def _hits(self) -> Mapping[str, int]:
        """Tokens of the prompt that each backend is thought to hold."""
        if self._pool.prefixes is None:
            return _NOTHING
        tokens = self._request.prompt_tokens
        found = self._pool.prefixes.match(self._request.blocks)
        return {who: cached_tokens(blocks, tokens) for who, blocks in found.items()}

    def _holder_of(self, key: str) -> str:
        """Where requests of an affinity key belong: of those that could have them now."""
        able = [b.id for b in self.serving if b.tier is Tier.LOCAL and not self.objection(b)]
        return _ring(tuple(sorted(able))).holder(key)

    def _lowest_score(self, slo: float, tpot: float) -> Choice | None:
        """As the ranking would; whoever cannot win is not looked at any closer."""
        request, terms, now = self._request, self._terms, self._now
        prompt, cached, kin = request.prompt_tokens, self._cached, self._kin
        ramp = terms.slow_start
        ttft_margin, tpot_margin = self._margin(Tier.LOCAL), self._tpot_margin()
        best: Choice | None = None
        lowest, equals = inf, 1
        for backend in self.serving:
            if backend.tier is not Tier.LOCAL:
                continue
            ahead = backend.outlook or outlook(backend)
            tokens = prompt - cached.get(backend.id, 0) if cached else prompt
            shared = KIN_SHARE * tokens if kin and backend.id == kin else 0.0
            mine = ahead.score + ahead.per_token * (tokens - shared)
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
        margin, tpot_margin = self._margin(tier), self._tpot_margin()
        for backend in self.serving:
            if backend.tier is not tier:
                continue
            ahead = outlook(backend)
            tokens = self.uncached(backend)
            if not has_room(ahead, tokens):
                continue
            time = self._expected_ttft(backend, ahead, tokens)
            if margin * time > slo or tpot_margin * ahead.tpot > tpot:
                continue
            if not self.objection(backend):
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
        shared = KIN_SHARE * tokens if backend.id == self._kin else 0.0
        mine = ahead.score + ahead.per_token * (tokens - shared)
        ramp = self._terms.slow_start
        return mine / warmth(self._now - backend.ready_since, ramp) if ramp else mine

    def _expected_ttft(self, backend: Backend, ahead: Outlook, tokens: int) -> float:
        """For a local backend its model's word, for a provider the p95 of what was seen of it."""
        return (
            backend.ttft_p95 if backend.tier is Tier.CLOUD else time_to_first_token(ahead, tokens)
        )


@lru_cache(maxsize=64)
def _ring(backends: tuple[str, ...]) -> Ring:
    return Ring(backends)


def has_room(ahead: Outlook, tokens: int) -> bool:
    """Whether a slot is free, and KV cache for a prompt with so many uncached tokens."""
    return ahead.free_slot and tokens <= ahead.kv_free
