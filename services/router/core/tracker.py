"""What a router knows of one backend's load: its reports, and what they cannot know of yet.

Router's view = last report + own dispatches since it × number of routers. Pure bookkeeping: the
clock is an argument. `view` gives the value that decisions are made from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from services.router.core.values import Backend, Health, Load, Prices, Resume, Tier

_MEAN_WEIGHT = 0.05
_TTFT_WEIGHT = 0.1
_NO_LOAD = Load()


class Tracker:
    """One backend. Whoever changes a public attribute calls `touch`."""

    __slots__ = (
        *("_ended_since", "_load", "_unreported", "_unreported_tokens", "_view"),
        *("cooling_until", "drained", "health", "id", "in_flight", "mean_output", "models"),
        *("peers", "prices", "ready_since", "resumes", "round_trip", "tier", "ttft", "ttft_p95"),
        "zone",
    )

    def __init__(self, id: str, tier: Tier, models: frozenset[str] = frozenset()) -> None:
        self.id = id
        self.tier = tier
        self.models = models
        self.health = Health.CONNECTING
        self.drained = False
        self.zone = ""
        self.resumes: Mapping[str, frozenset[Resume]] = {}
        self.prices: Mapping[str, Prices] = {}
        self.round_trip = 0.0
        self.cooling_until = float("-inf")
        self.ready_since = float("-inf")
        # Routers that send here, this one included: the others' dispatches are like its own.
        self.peers = 1
        self.in_flight = 0
        self.mean_output = 200.0
        self.ttft = 0.0
        self.ttft_p95 = 0.0
        self._load = _NO_LOAD
        self._unreported: deque[tuple[int, int]] = deque()
        self._unreported_tokens = 0
        self._ended_since = 0
        self._view: Backend | None = None

    @property
    def load(self) -> Load:
        """The latest report."""
        return self._load

    def view(self) -> Backend:
        """The backend as a value, for a decision."""
        view = self._view
        if view is None:
            view = self._view = Backend(
                id=self.id,
                tier=self.tier,
                health=self.health,
                models=self.models,
                load=self._load,
                in_flight=self.in_flight,
                sent_since=len(self._unreported) * self.peers,
                sent_tokens_since=self._unreported_tokens * self.peers,
                ended_since=self._ended_since,
                round_trip=self.round_trip,
                cooling_until=self.cooling_until,
                ready_since=self.ready_since,
                drained=self.drained,
                resumes=self.resumes,
                prices=self.prices,
                zone=self.zone,
                mean_output=self.mean_output,
                ttft=self.ttft,
                ttft_p95=self.ttft_p95,
            )
        return view

    def touch(self) -> None:
        """Something that a decision sees is different now."""
        self._view = None

    def started(self, start: int, prompt_tokens: int) -> None:
        """A request was sent: the session's start number `start`, with so many uncached tokens."""
        self.in_flight += 1
        self._unreported.append((start, prompt_tokens))
        self._unreported_tokens += prompt_tokens
        self._view = None

    def ended(self, count: int = 1) -> None:
        """So many requests are over."""
        self.in_flight -= count
        self._ended_since += count
        if self._load is _NO_LOAD:
            # Some never report: what they were sent would be remembered for ever.
            unreported = self._unreported
            while len(unreported) > self.in_flight:
                self._unreported_tokens -= unreported.popleft()[1]
                self._ended_since -= 1
        self._view = None

    def reported(self, load: Load, starts_seen: int) -> None:
        """The backend's own figures; what was sent after the start `starts_seen` stays added."""
        self._load = load
        self._ended_since = 0
        unreported = self._unreported
        while unreported and unreported[0][0] <= starts_seen:
            self._unreported_tokens -= unreported.popleft()[1]
        self._view = None

    def answered(self, output_tokens: int) -> None:
        """An answer of this length is complete."""
        self.mean_output += _MEAN_WEIGHT * (output_tokens - self.mean_output)

    def first_token(self, seconds: float) -> None:
        """One came so long after its dispatch. For `c3` and providers, never the speed ratio."""
        self.ttft += (_TTFT_WEIGHT if self.ttft else 1.0) * (seconds - self.ttft)
        self._view = None

    def connected(self, now: float) -> None:
        """A new session: nothing of an earlier one holds."""
        self.ready_since = now
        self.health = Health.READY
        self._load = _NO_LOAD
        self._forget()

    def disconnected(self, health: Health) -> None:
        """The session is over, and every request on it."""
        self.health = health
        self._forget()

    def _forget(self) -> None:
        self.in_flight = 0
        self._ended_since = 0
        self._unreported.clear()
        self._unreported_tokens = 0
        self._view = None
