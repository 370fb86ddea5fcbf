"""What the router knows of one backend, and the value that decisions see of it.

Bookkeeping only: the session that feeds it is in uplink.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from anabranch.v1 import errors_pb2, generation_pb2, session_pb2
from services.chassis.errors import MODEL_LEFT, Fault
from services.chassis.registry import Instance
from services.router.core.breaker import Breaker
from services.router.core.policy import BreakerRules
from services.router.core.prediction import longest_step, outlook, time_to_first_token
from services.router.core.quantiles import RecentQuantile
from services.router.core.tracker import Tracker
from services.router.core.values import Coefficients, Health, Load, Prices, Resume, Tier

# A step or a prompt may take so many times as long as expected before its backend is silent.
_PATIENCE = 5.0
_AT_REST = (0, 0, 1.0, 0.0)
"""The pace of a backend that has made no step."""

_TIERS = {generation_pb2.TIER_LOCAL: Tier.LOCAL, generation_pb2.TIER_CLOUD: Tier.CLOUD}
_RESUMES = {
    generation_pb2.CAPABILITY_RESUME_TOKENS: Resume.AFTER_TOKENS,
    generation_pb2.CAPABILITY_RESUME_TEXT: Resume.AFTER_TEXT,
}
# Anything else is the caller's own doing and says nothing about the backend.
_BACKEND_FAILURES = frozenset(
    {
        errors_pb2.ERROR_REASON_BACKEND_LOST,
        errors_pb2.ERROR_REASON_PROVIDER_ERROR,
        errors_pb2.ERROR_REASON_INTERNAL,
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    }
)


class KnownBackend:
    """A backend's identity, health, load and recent failures.

    What decisions see of it is in `tracker`.
    """

    def __init__(
        self, instance: Instance, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self.instance = instance
        self.detail = "opening the session"
        self.models: dict[str, generation_pb2.ModelInfo] = {}
        self.version = instance.meta.get("version", "")
        self.report: session_pb2.LoadReport | None = None
        self.report_at = 0.0
        self._pace = _AT_REST
        self.leaving = False
        self._listed_models = frozenset(filter(None, instance.meta.get("models", "").split(",")))
        # What does not say that it is local may lead anywhere: nothing private goes there.
        tier = Tier.LOCAL if instance.meta.get("tier") == Tier.LOCAL.value else Tier.CLOUD
        self.tracker = Tracker(instance.id, tier, self._listed_models)
        self.tracker.state.zone = instance.meta.get("zone", "")
        self.tracker.state.weight = instance.weight
        self._on_change = on_change
        self._clock = clock
        self.breaker = Breaker(BreakerRules())
        self._ttft = RecentQuantile(default=0.0)

    @property
    def id(self) -> str:
        """The backend's id in the registry."""
        return self.instance.id

    @property
    def health(self) -> Health:
        """Whether it takes work."""
        return self.tracker.state.health

    @property
    def tier(self) -> Tier:
        """On whose hardware it runs."""
        return self.tracker.state.tier

    @property
    def zone(self) -> str:
        """Its availability zone, empty when it has none."""
        return self.tracker.state.zone

    @property
    def drained(self) -> bool:
        """Whether an operator wants nothing new to go there."""
        return self.tracker.state.drained

    @property
    def in_flight(self) -> int:
        """This router's requests there."""
        return self.tracker.in_flight

    @property
    def model_names(self) -> frozenset[str]:
        """What it serves, as it says itself, or as listed before it ever did."""
        return self.tracker.state.models

    def changed(self) -> None:
        """Something that a decision sees is different now."""
        self.tracker.touch()
        self._on_change()

    def set_weight(self, weight: float) -> None:
        """The registry gives it another share."""
        if self.tracker.state.weight != weight:
            self.tracker.state.weight = weight
            self.changed()

    def set_drained(self, drained: bool) -> None:
        """Nothing new for it, or again."""
        if self.tracker.state.drained != drained:
            self.tracker.state.drained = drained
            self.changed()

    def greeted(self, ready: session_pb2.SessionReady) -> None:
        """A session is open, and the backend said what it is."""
        tracker = self.tracker
        self._take_models(ready.models)
        tracker.state.tier = _TIERS.get(ready.tier, Tier.CLOUD)
        tracker.state.zone = ready.zone or tracker.state.zone
        self.version = ready.version or self.version
        self.report = None
        self._pace = _AT_REST
        self.leaving = False
        tracker.connected(self._clock())
        self.set_health(Health.READY, "")

    def serves(self, models: Iterable[generation_pb2.ModelInfo]) -> None:
        """Other models than before, or none at all."""
        self._take_models(models)
        self.changed()

    def _take_models(self, models: Iterable[generation_pb2.ModelInfo]) -> None:
        self.models = {
            name: model for model in models for name in (*model.aliases, model.name) if name
        }
        state = self.tracker.state
        state.models = frozenset(self.models)
        state.resumes = {
            name: frozenset(_RESUMES[c] for c in info.capabilities if c in _RESUMES)
            for name, info in self.models.items()
        }
        state.prices = {
            name: Prices(info.prices.input, info.prices.output)
            for name, info in self.models.items()
            if info.HasField("prices")
        }

    def set_health(self, health: Health, detail: str) -> None:
        """Records whether it takes work, and for people why not."""
        self.tracker.state.health = health
        self.detail = detail
        self.changed()

    def ended(self, count: int) -> None:
        """So many requests are over."""
        self.tracker.ended(count)
        self._on_change()

    def reported(self, report: session_pb2.LoadReport) -> None:
        """The backend's own figures; what was sent later stays added to them."""
        self.report = report
        self.report_at = self._clock()
        pace = _pace(report)
        if pace != self._pace:
            # It has ended a step: whoever reads a long prompt brings no token, and works.
            self._pace = pace
            self.breaker.heartbeat(self.report_at)
        self.tracker.reported_later(lambda: _load(report), report.starts_seen)
        if report.draining and self.health is Health.READY:
            self.leaves("draining")
        else:
            self._on_change()

    def leaves(self, why: str) -> None:
        """It says itself that it takes nothing new in this session."""
        self.leaving = True
        self.set_health(Health.DRAINING, why)

    def disconnected(self, health: Health, detail: str) -> None:
        """The session is over, and every request on it."""
        self.tracker.disconnected(health)
        self.set_health(health, detail)

    # What its breaker is told. `generation` is what `sent` said of the request.

    def sent(self) -> int:
        """A request goes there."""
        generation = self.breaker.sent(self._clock())
        if self.breaker.open_until != self.tracker.state.cooling_until:
            self._show_breaker()
        return generation

    def heard(self) -> None:
        """News of requests came."""
        self.breaker.heartbeat(self._clock())

    def answers(self, generation: int, seconds: float) -> None:
        """A first token came, so long after its request was sent."""
        now = self._clock()
        tracker = self.tracker
        tracker.first_token(seconds)
        if tracker.state.tier is Tier.CLOUD:
            self._ttft.add(seconds, now)
            tracker.state.ttft_p95 = self._ttft.value(now)
        self.breaker.proved(generation, now)
        self._show_breaker()

    def answered(self, generation: int) -> None:
        """A request ended well."""
        self.breaker.succeeded(generation, self._clock())
        self._show_breaker()

    def abandoned(self, generation: int) -> None:
        """A request's caller left: its end says nothing about the backend."""
        self.breaker.abandoned(generation, self._clock())
        self._show_breaker()

    def failed(self, generation: int, fault: Fault) -> None:
        """A request failed there; after a few in a row, or too many of all, the backend rests."""
        now = self._clock()
        # A model that leaves takes nothing from the others there.
        left = fault.metadata.get("cause") == MODEL_LEFT
        if fault.reason in _BACKEND_FAILURES and not left:
            self.breaker.failed(generation, now)
        else:
            self.breaker.abandoned(generation, now)
        self._show_breaker()

    def is_silent(self, decoding: int) -> bool:
        """Whether it has work and brought no token for too long; it rests then.

        Those that decode bring one with each step, however long its prompts make one. One that
        only reads prompts may be silent for several times as long as that is expected to take, and
        for any time until it has said how fast it is. A provider pauses as it likes, and its proxy
        ends what takes too long: that one is silent says nothing about the others there.
        """
        tracker = self.tracker
        if tracker.state.tier is Tier.CLOUD:
            return False
        excused = 0.0 if decoding else inf
        view = tracker.view()
        if view.load.step_time > 0:
            ahead = outlook(view)
            expected = longest_step(ahead) if decoding else time_to_first_token(ahead, 0)
            excused = _PATIENCE * expected
        silent = self.breaker.check_silence(self._clock(), tracker.in_flight, excused)
        if silent:
            self._show_breaker()
        return silent

    def reset_breaker(self) -> None:
        """Forgets failures: the backend is tried again at once."""
        self.breaker.reset()
        self._show_breaker()

    def _show_breaker(self) -> None:
        """Decisions see it."""
        if self.tracker.state.cooling_until != self.breaker.open_until:
            self.tracker.state.cooling_until = self.breaker.open_until
            self.changed()


def _pace(report: session_pb2.LoadReport) -> tuple[int, int, float, float]:
    """Averages over steps, which each step changes."""
    step_time, ratio = report.step_time, _positive(report.step_time_ratio) or 1.0
    return (step_time.seconds, step_time.nanos, ratio, _positive(report.prefill_tokens_per_step))


def _load(report: session_pb2.LoadReport) -> Load:
    return Load(
        running=report.running,
        waiting=report.waiting,
        queued_prefill_tokens=report.queued_prefill_tokens,
        context_tokens=report.context_tokens,
        kv_used_tokens=report.kv_used_tokens,
        kv_total_tokens=report.kv_total_tokens,
        step_time_ratio=_positive(report.step_time_ratio) or 1.0,
        prefill_tokens_per_step=_positive(report.prefill_tokens_per_step),
        step_time=max(report.step_time.ToNanoseconds() / 1e9, 0.0),
        max_running=report.max_running,
        prefill_budget=report.prefill_budget,
        coefficients=_coefficients(report.step_model) if report.HasField("step_model") else None,
    )


def _coefficients(model: session_pb2.StepCoefficients) -> Coefficients | None:
    """The wire speaks of microseconds, decisions of seconds. None where no step takes time.

    Fitted ones may come out below zero, where more load would seem to be less.
    """
    said = (model.base, model.prefill, model.decode, model.context)
    found = Coefficients(*[_positive(value) / 1e6 for value in said])
    return found if found.base else None


def _positive(value: float) -> float:
    """The value, 0 for what no figure of a load can be: one below zero, infinite or not a number.

    A score that is none would win, or lose, against any other.
    """
    return value if 0.0 < value < inf else 0.0
