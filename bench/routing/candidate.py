"""The router's own core as a policy of the laboratory: fed as the shell feeds it.

Nothing of the decision is here. What services/router/known_backend.py, decisions.py and
waiting_line.py do around core, between a message of a backend and a choice, is done likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

from bench.routing.candidate_backend import MODEL, CandidateBackend, cloud_backend
from bench.routing.cloud import Cloud
from bench.routing.policy import Choice, Elsewhere, World
from bench.routing.replica import Report, Shape
from bench.routing.tables import MOONCAKE_BLOCK
from bench.routing.workloads import Job
from services.router.core.admission import codel_target
from services.router.core.decide import choose
from services.router.core.line import Admitted, Line
from services.router.core.overflow import Valve
from services.router.core.policy import Policy, PriorityClass
from services.router.core.prefix import TOKENS_PER_BLOCK, PrefixIndex
from services.router.core.terms import terms_of
from services.router.core.values import (
    Dispatch,
    Health,
    Pool,
    Refuse,
    Request,
    Residency,
    Resume,
    Tier,
    Wait,
)

NAMES_PER_BLOCK = MOONCAKE_BLOCK // TOKENS_PER_BLOCK
MOST_NAMES = 512
"""As in services/chassis/prompt_blocks.py: what lies beyond has no names."""

_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Variant:
    """How the core is used: its policy document, and what backends tell of their caches.

    `misjudged` is the spread (of the logarithm) by which prompt lengths are misjudged, as a router
    without a tokenizer does.
    """

    policy: Policy = field(default_factory=Policy)
    residency: Residency = Residency.LOCAL_FIRST
    cache_events: bool = True
    misjudged: float = 0.0


class Candidate:
    """One router."""

    def __init__(
        self,
        world: World,
        shapes: Sequence[Shape],
        routers: int,
        random: Random,
        *,
        variant: Variant = Variant(),
        cloud: Cloud | None = None,
    ) -> None:
        policy = variant.policy
        self._random = random
        self._variant = variant
        self._terms = terms_of(policy, MODEL)
        self._valve = Valve(self._terms.overflow)
        self._line: Line[Job] = Line(policy.admission)
        self._turn = 0
        # Who waits on while the line is asked in turn; None while it is not.
        self._passed: int | None = None
        self._local = [
            CandidateBackend(f"replica-{number}", shape, routers, policy.breaker)
            for number, shape in enumerate(shapes)
        ]
        self._numbers = {backend.id: number for number, backend in enumerate(self._local)}
        self._cloud = cloud_backend(cloud, policy.breaker) if cloud is not None else None
        everyone = [*self._local, *([self._cloud] if self._cloud is not None else [])]
        self._trackers = [backend.tracker for backend in everyone]
        self._prefixes: PrefixIndex | None = None
        if policy.affinity.enabled:
            self._prefixes = PrefixIndex(policy.affinity.blocks_per_backend)
        for backend in self._local:
            self._greeted(backend, 0.0)
        # Of the last verdict.
        self._tokens = 0
        self._may_leave = False

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """What the core says."""
        self._turn += 1
        views = tuple([tracker.view() for tracker in self._trackers])
        pool = Pool(views, self._prefixes, self._turn)
        request = self._request(job, now, impatient=impatient)
        verdict = choose(request, pool, self._terms, now, self._random)
        if isinstance(verdict, Wait):
            self._may_leave = verdict.may_leave
            return Elsewhere.WAIT
        if isinstance(verdict, Refuse):
            return Elsewhere.REFUSE
        self._learn(verdict, now)
        job.predicted = verdict.predicted_ttft
        self._tokens = verdict.tokens
        return Elsewhere.CLOUD if verdict.tier is Tier.CLOUD else self._numbers[verdict.backend_id]

    def _learn(self, verdict: Dispatch, now: float) -> None:
        if self._variant.residency is Residency.LOCAL_FIRST:
            local = verdict.tier is Tier.LOCAL and not verdict.late
            self._valve.update(local, local and verdict.comfortable, now)

    def _request(self, job: Job, now: float, *, impatient: bool) -> Request:
        begun = job.delivered > 0
        in_turn = self._passed is not None
        return Request(
            MODEL,
            self._judged(job),
            residency=self._variant.residency,
            resume=Resume.AFTER_TOKENS if begun else Resume.FRESH,
            tried=frozenset(self._local[i].id for i in job.tried) if job.tried else _NOBODY,
            waited=0.0 if begun else now - job.arrived,
            blocks=self._names(job),
            overflowing=self._valve.open,
            begun_in=Tier.LOCAL if begun else None,
            ahead=(self._passed or 0) if in_turn else self._line.ahead(PriorityClass.INTERACTIVE),
            impatient=impatient,
        )

    def _judged(self, job: Job) -> int:
        tokens = job.prompt + job.delivered
        if not self._variant.misjudged:
            return tokens
        error = Random(job.number).lognormvariate(0.0, self._variant.misjudged)  # noqa: S311
        return max(1, round(tokens * error))

    def _names(self, job: Job) -> tuple[int, ...]:
        if not job.blocks or self._prefixes is None:
            return ()
        return tuple(_named(job.blocks[: MOST_NAMES // NAMES_PER_BLOCK]))

    def sent(self, job: Job, backend: int, start: int, now: float) -> None:
        """A job is on its way: the one that was decided last."""
        there = self._local[backend]
        there.sent(job, start, self._tokens, now)
        if self._prefixes is not None and job.blocks:
            self._prefixes.sent(there.id, self._names(job))

    def sent_to_cloud(self, job: Job, now: float) -> None:
        """A job left for the cloud."""
        assert self._cloud is not None
        self._cloud.sent(job, 0, self._tokens, now)

    def reported(self, backend: int, report: Report, seen: int, now: float) -> None:
        """A load report came with a message."""
        self._local[backend].reported(report, seen)

    def cache_changed(self, backend: int, stored: Sequence[int], removed: Sequence[int]) -> None:
        """Events of a prefix cache came with a message."""
        if self._prefixes is not None and self._variant.cache_events:
            who = self._local[backend].id
            self._prefixes.removed(who, _named(removed))
            self._prefixes.stored(who, _named(stored))

    def first(self, job: Job, now: float) -> None:
        """A first token."""
        self._where(job).answers(job, now)

    def ended(self, job: Job, now: float) -> None:
        """A job is complete."""
        self._where(job).answered(job, now)

    def _where(self, job: Job) -> CandidateBackend:
        if not job.cloud:
            return self._local[job.backend]
        assert self._cloud is not None
        return self._cloud

    def lost(self, backend: int, now: float) -> None:
        """A session is over, and every request on it."""
        there = self._local[backend]
        there.lost(now)
        there.tracker.disconnected(Health.LOST)
        if self._prefixes is not None:
            self._prefixes.forget(there.id)

    def back(self, backend: int, now: float) -> None:
        """A new session is open."""
        self._greeted(self._local[backend], now)

    def _greeted(self, backend: CandidateBackend, now: float) -> None:
        backend.tracker.connected(now)
        if self._prefixes is not None and self._variant.cache_events:
            self._prefixes.reports(backend.id)

    # The line: core's own

    @property
    def waiting(self) -> int:
        """Jobs in the line."""
        return len(self._line)

    def join(self, job: Job, now: float) -> bool:
        """Whether there is a seat, and hope, for the one that was decided last."""
        target = inf
        if not self._may_leave:
            target = codel_target(self._variant.policy.admission, self._terms.objective)
        outcome = self._line.join(job, PriorityClass.INTERACTIVE, now, target=target)
        return isinstance(outcome, Admitted)

    def shed(self, now: float) -> Sequence[Job]:
        """Those that wait in vain."""
        return [gone.key for gone in self._line.shed(now)]

    def in_order(self, now: float) -> Iterator[Job]:
        """Whose turn it is."""
        self._passed = 0
        for job in self._line.in_order(now):
            yield job
            self._passed += job in self._line
        self._passed = None

    def leave(self, job: Job, now: float, *, served: bool) -> None:
        """It waits no longer."""
        if served:
            self._line.serve(job, now)
        else:
            self._line.leave(job)


def _named(blocks: Sequence[int]) -> list[int]:
    """The router's names for a trace's blocks, which are larger."""
    return [block * NAMES_PER_BLOCK + part for block in blocks for part in range(NAMES_PER_BLOCK)]
