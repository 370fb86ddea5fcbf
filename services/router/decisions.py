"""Asks core, with the policy in force and what one decision leaves behind for the next.

That is: which overflow valves are open, what repeats and hedges are affordable, whose turn it is.
It acts on nothing; the waiting line is in waiting_line.py, money in spending.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from anabranch.v1 import generation_pb2 as pb
from services.router.core import values
from services.router.core.decide import choose, decide, open_backends
from services.router.core.hedging import Hedging
from services.router.core.overflow import Valve
from services.router.core.policy import Policy
from services.router.core.retry_budget import RetryBudget
from services.router.core.splits import Split
from services.router.core.terms import terms_of
from services.router.pool import Pool
from services.router.uplink import Uplink

MASKABLE = {
    "email": pb.PII_KIND_EMAIL,
    "phone": pb.PII_KIND_PHONE,
    "card": pb.PII_KIND_CARD,
    "cn-id": pb.PII_KIND_CN_ID,
    "secret": pb.PII_KIND_SECRET,
}
"""What a policy's list `masking` may name."""

# Callers make model names up; what is remembered of them is bounded.
_REMEMBERED_MODELS = 1000


class Decisions:
    """The decisions of one router process."""

    def __init__(
        self,
        pool: Pool,
        policy: Callable[[], Policy],
        clock: Callable[[], float],
        seed: int | None = None,
    ) -> None:
        self._pool = pool
        self._read_policy = policy
        self._clock = clock
        # Breaks ties; nothing secret hangs on it.
        self._random = random.Random(seed)  # noqa: S311
        # As of the last request: what one request reads is of one policy.
        self.policy = policy()
        self._terms: dict[str, values.Terms] = {}
        self._valves: dict[str, Valve] = {}
        self._splits: dict[str, Split] = {}
        self._turn = 0
        self.retries = RetryBudget(self.policy.retry)
        self.hedging = Hedging(self.policy.hedge)
        pool.set_rules(self.policy.breaker, self.policy.affinity)

    def policy_now(self) -> Policy:
        """The policy in force; a new one takes effect when it is first asked for."""
        policy = self._read_policy()
        if policy is not self.policy:
            self.policy = policy
            self._terms.clear()
            self._valves.clear()
            self._splits.clear()
            self.retries.set_rules(policy.retry)
            self.hedging.set_rules(policy.hedge)
            self._pool.set_rules(policy.breaker, policy.affinity)
        return policy

    def terms(self, model: str) -> values.Terms:
        """What the policy says about a model."""
        found = self._terms.get(model)
        if found is None:
            if len(self._terms) >= _REMEMBERED_MODELS:
                self._terms.clear()
            found = self._terms[model] = terms_of(self.policy, model)
        return found

    def resolve(self, name: str, key: str) -> str:
        """The model that a name stands for: itself, or an alias's variant by `key` or chance."""
        variants = self.policy.aliases.get(name)
        if variants is None:
            return name
        split = self._splits.get(name)
        if split is None:
            split = self._splits[name] = Split(name, variants)
        return split.choose(key, self._random)

    def serves(self, model: str) -> bool:
        """Whether the name is one of ours: a backend's, or the policy's for one or more."""
        policy = self.policy
        return model in policy.models or model in policy.aliases or self._pool.serves(model)

    def masks(self, tenant: str) -> tuple[pb.PiiKind, ...]:
        """What must be masked before a tenant's prompt leaves, beside what the proxy masks."""
        names = self.policy.masked_for(tenant)
        return tuple([MASKABLE[name] for name in sorted(names)]) if names else ()

    def overflowing(self, model: str) -> bool:
        """Whether a model's excess flows to the cloud."""
        valve = self._valves.get(model)
        return valve is not None and valve.open

    def choose(self, request: values.Request, terms: values.Terms) -> values.Verdict:
        """Decides a request against the backends as they are now."""
        now = self._clock()
        self._turn += 1
        verdict = choose(request, self._pool.snapshot(self._turn), terms, now, self._random)
        if request.residency is values.Residency.LOCAL_FIRST:
            self._learn(request.model, terms, verdict, now)
        return verdict

    def decide(self, request: values.Request, terms: values.Terms) -> values.Decision:
        """The same with all that was weighed, without leaving anything behind."""
        snapshot = self._pool.snapshot(self._turn)
        return decide(request, snapshot, terms, self._clock(), self._random)

    def open_to(self, request: values.Request, terms: values.Terms) -> list[Uplink]:
        """Backends for a small question about the model, best first, whatever their load."""
        found = open_backends(request, self._pool.snapshot(self._turn), terms, self._clock())
        return [uplink for b in found if (uplink := self._pool.uplink(b.id)) is not None]

    def count_request(self) -> None:
        """A request came: repeats and hedges may be a share of these."""
        now = self._clock()
        self.retries.deposit(now)
        if self.policy.hedge.enabled:
            self.hedging.count(now)

    def objection_to_repeat(self, attempts: int, *, lost: bool) -> str:
        """Why a request that failed is not tried elsewhere, or nothing, and a repeat is counted.

        A lost backend is no answer: what ran there goes on elsewhere whatever the budget, which is
        there for answers that provoke ever more questions.
        """
        most = self.policy.retry.attempts
        if attempts >= most:
            return f"gave up after {most} attempts"
        if lost or self.retries.withdraw(self._clock()):
            return ""
        return "the retry budget is used up"

    def _learn(self, model: str, terms: values.Terms, verdict: values.Verdict, now: float) -> None:
        """Opens and closes the model's valve by what a request that prefers local found."""
        if not isinstance(verdict, values.Dispatch):
            return
        local = verdict.tier is values.Tier.LOCAL and not verdict.late
        valve = self._valves.get(model)
        if valve is None:
            if local:
                return
            if len(self._valves) >= _REMEMBERED_MODELS:
                self._valves.clear()
            valve = self._valves[model] = Valve(terms.overflow)
        valve.update(local, local and verdict.comfortable, now)
