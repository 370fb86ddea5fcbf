"""What the router knows of one backend, and the value that decisions see of it.

Bookkeeping only: the session that feeds it is in uplink.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from anabranch.v1 import errors_pb2, generation_pb2, session_pb2
from services.chassis.errors import Fault
from services.chassis.registry import Instance
from services.router.core.values import Backend, Health, Load, Resume, Tier

FAILURES_TO_REST = 3
REST_S = 5.0

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
    """A backend's identity, health, load and recent failures."""

    def __init__(
        self, instance: Instance, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self.instance = instance
        self.health = Health.CONNECTING
        self.detail = "opening the session"
        self.drained = False
        self.models: dict[str, generation_pb2.ModelInfo] = {}
        self.version = instance.meta.get("version", "")
        self.zone = instance.meta.get("zone", "")
        # What does not say that it is local may lead anywhere: nothing private goes there.
        self.tier = Tier.LOCAL if instance.meta.get("tier") == Tier.LOCAL.value else Tier.CLOUD
        self.report: session_pb2.LoadReport | None = None
        self.report_at = 0.0
        self.in_flight = 0
        self._listed_models = frozenset(filter(None, instance.meta.get("models", "").split(",")))
        self._on_change = on_change
        self._clock = clock
        self._unreported: deque[tuple[int, int]] = deque()
        self._unreported_tokens = 0
        self._ended_since = 0
        self._failures = 0
        self._cooling_until = float("-inf")
        self._view: Backend | None = None
        # Parts of the view that change seldom: it is made anew for each request.
        self._names = self._listed_models
        self._load = Load()
        self._resumes: dict[str, frozenset[Resume]] = {}

    @property
    def id(self) -> str:
        """The backend's id in the registry."""
        return self.instance.id

    @property
    def model_names(self) -> frozenset[str]:
        """What it serves, as it says itself, or as listed before it ever did."""
        return self._names

    def view(self) -> Backend:
        """The backend as a value, for a decision."""
        if self._view is None:
            self._view = Backend(
                id=self.id,
                tier=self.tier,
                health=self.health,
                models=self._names,
                load=self._load,
                in_flight=self.in_flight,
                sent_since=len(self._unreported),
                sent_tokens_since=self._unreported_tokens,
                ended_since=self._ended_since,
                cooling_until=self._cooling_until,
                drained=self.drained,
                resumes=self._resumes,
            )
        return self._view

    def changed(self) -> None:
        """Something that a decision sees is different now."""
        self._view = None
        self._on_change()

    def greeted(self, ready: session_pb2.SessionReady) -> None:
        """A session is open, and the backend said what it is."""
        self.models = {model.name: model for model in ready.models}
        self._names = frozenset(self.models) or self._listed_models
        self._resumes = {
            name: frozenset(_RESUMES[c] for c in info.capabilities if c in _RESUMES)
            for name, info in self.models.items()
        }
        self.tier = _TIERS.get(ready.tier, Tier.CLOUD)
        self.version = ready.version or self.version
        self.zone = ready.zone or self.zone
        self.report = None
        self._load = Load()
        self._ended_since = 0
        self._forget_unreported()
        self.set_health(Health.READY, "")

    def set_health(self, health: Health, detail: str) -> None:
        """Records whether it takes work, and for people why not."""
        self.health = health
        self.detail = detail
        self.changed()

    def started(self, start: int, prompt_tokens: int) -> None:
        """A request was sent: the session's start number `start`."""
        self.in_flight += 1
        self._unreported.append((start, prompt_tokens))
        self._unreported_tokens += prompt_tokens
        # The sender has just decided, and waiting requests gain nothing from a fuller backend.
        self._view = None

    def ended(self, count: int) -> None:
        """So many requests are over."""
        self.in_flight -= count
        self._ended_since += count
        self.changed()

    def reported(self, report: session_pb2.LoadReport) -> None:
        """The backend's own figures; what was sent later stays added to them."""
        self.report = report
        self._load = _load(report)
        self._ended_since = 0
        self.report_at = self._clock()
        unreported, seen = self._unreported, report.starts_seen
        while unreported and unreported[0][0] <= seen:
            self._unreported_tokens -= unreported.popleft()[1]
        if report.draining and self.health is Health.READY:
            self.set_health(Health.DRAINING, "draining")
        else:
            self.changed()

    def disconnected(self, health: Health, detail: str) -> None:
        """The session is over, and every request on it."""
        self.in_flight = 0
        self._forget_unreported()
        self.set_health(health, detail)

    def _forget_unreported(self) -> None:
        self._unreported.clear()
        self._unreported_tokens = 0

    def answered(self) -> None:
        """A request went well: earlier failures no longer count."""
        self._failures = 0

    def failed(self, fault: Fault) -> None:
        """A request failed there; after a few in a row the backend rests."""
        if fault.reason not in _BACKEND_FAILURES:
            return
        self._failures += 1
        if self._failures >= FAILURES_TO_REST:
            self._cooling_until = self._clock() + REST_S
            self.changed()

    def reset_breaker(self) -> None:
        """Forgets failures: the backend is tried again at once."""
        self._failures = 0
        self._cooling_until = float("-inf")
        self.changed()


def _load(report: session_pb2.LoadReport) -> Load:
    return Load(
        running=report.running,
        waiting=report.waiting,
        queued_prefill_tokens=report.queued_prefill_tokens,
        context_tokens=report.context_tokens,
        kv_used_tokens=report.kv_used_tokens,
        kv_total_tokens=report.kv_total_tokens,
        step_time_ratio=report.step_time_ratio or 1.0,
        prefill_tokens_per_step=report.prefill_tokens_per_step,
        step_time=report.step_time.ToNanoseconds() / 1e9,
        max_running=report.max_running,
        prefill_budget=report.prefill_budget,
    )


def model_union(backends: Iterable[KnownBackend]) -> list[generation_pb2.ModelInfo]:
    """The models of all ready backends, one entry a name, tiers and counts joined."""
    merged: dict[str, generation_pb2.ModelInfo] = {}
    for backend in backends:
        if backend.health is not Health.READY:
            continue
        for name, info in backend.models.items():
            entry = merged.get(name)
            if entry is None:
                entry = merged[name] = generation_pb2.ModelInfo()
                entry.CopyFrom(info)
                entry.backends = 0
            entry.backends += 1
            entry.tiers.extend(t for t in info.tiers if t not in entry.tiers)
            # Every backend must be able to do what is promised for the name.
            both = [c for c in entry.capabilities if c in info.capabilities]
            del entry.capabilities[:]
            entry.capabilities.extend(both)
            lengths = [n for n in (entry.context_length, info.context_length) if n]
            entry.context_length = min(lengths, default=0)
    return list(merged.values())
