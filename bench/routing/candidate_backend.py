"""One backend as the router's core knows it: tracker, breaker, times to first token.

As services/router/known_backend.py, without a wire.
"""

from __future__ import annotations

from bench.routing.cloud import Cloud
from bench.routing.replica import Report, Shape
from bench.routing.workloads import Job
from services.router.core.breaker import UNKNOWN, Breaker
from services.router.core.policy import BreakerRules
from services.router.core.quantiles import RecentQuantile
from services.router.core.tracker import Tracker
from services.router.core.values import Coefficients, Load, Prices, Resume, Tier

MODEL = "model"
_MODELS = frozenset({MODEL})
_RESUMES = {MODEL: frozenset({Resume.AFTER_TOKENS, Resume.AFTER_TEXT})}


class CandidateBackend:
    """A replica, or the cloud where `shape` is None."""

    def __init__(self, id: str, shape: Shape | None, routers: int, rules: BreakerRules) -> None:
        tier = Tier.CLOUD if shape is None else Tier.LOCAL
        self.id = id
        self.tracker = Tracker(id, tier, _MODELS)
        self.tracker.state.resumes = _RESUMES
        self.tracker.set_peers(1 if shape is None else routers)
        self.breaker = Breaker(rules)
        self._ttft = RecentQuantile(default=0.0)
        self._sent_in: dict[Job, int] = {}
        self._coefficients: Coefficients | None = None
        if shape is not None:
            costs = shape.costs
            self._coefficients = Coefficients(
                costs.base, costs.prefill, costs.decode, costs.context
            )

    def sent(self, job: Job, start: int, tokens: int, now: float) -> None:
        """A job goes there, with so many tokens to compute."""
        self.tracker.started(start, tokens)
        self._sent_in[job] = self.breaker.sent(now)
        self._show_breaker()

    def reported(self, report: Report, seen: int) -> None:
        """Its own figures."""
        self.tracker.reported(Load(*report, self._coefficients), seen)

    def answers(self, job: Job, now: float) -> None:
        """A first token came."""
        assert job.sent is not None
        seconds = now - job.sent
        self.tracker.first_token(seconds)
        state = self.tracker.state
        if state.tier is Tier.CLOUD:
            self._ttft.add(seconds, now)
            state.ttft_p95 = self._ttft.value(now)
        self.breaker.proved(self._sent_in.get(job, UNKNOWN), now)
        self._show_breaker()

    def answered(self, job: Job, now: float) -> None:
        """A job is complete."""
        self.tracker.ended()
        self.tracker.answered(job.output)
        self.breaker.succeeded(self._sent_in.pop(job, UNKNOWN), now)
        self._show_breaker()

    def lost(self, now: float) -> None:
        """Its session is over: each job there has failed."""
        for generation in self._sent_in.values():
            self.breaker.failed(generation, now)
        self._sent_in.clear()
        self._show_breaker()

    def _show_breaker(self) -> None:
        if self.tracker.state.cooling_until != self.breaker.open_until:
            self.tracker.state.cooling_until = self.breaker.open_until
            self.tracker.touch()


def cloud_backend(cloud: Cloud, rules: BreakerRules) -> CandidateBackend:
    """A provider behind the cloud proxy."""
    backend = CandidateBackend("cloud", None, 1, rules)
    backend.tracker.state.prices = {
        MODEL: Prices(round(1e6 * cloud.prompt_price), round(1e6 * cloud.output_price))
    }
    backend.tracker.connected(0.0)
    return backend
