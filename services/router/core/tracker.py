"""What a router knows of one backend's load: its reports, and what they cannot know of yet.

Router's view = last report + own dispatches since it × number of routers. Pure bookkeeping: the
clock is an argument. `view` gives the value that decisions are made from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from services.router.core.values import Backend, Health, Load, Tier

_MEAN_WEIGHT = 0.05
_TTFT_WEIGHT = 0.1
_NO_LOAD = Load()


class Tracker:
    """One backend. `state` is what decisions see of it: whoever changes it there calls `touch`.

    It is changed in place, since each dispatch and each end would make another one: a snapshot that
    holds it is good for the decision that it was taken for. Its `load` is that of the latest report
    only in a `view`: an engine reports with each step or so, and many steps pass between decisions.
    """

    __slots__ = ("_peers", "_read_load", "_unreported", "_unreported_tokens", "state")

    def __init__(self, id: str, tier: Tier, models: frozenset[str] = frozenset()) -> None:
        self.state = Backend(id, tier, Health.CONNECTING, models, _NO_LOAD)
        self._peers = 1
        self._read_load: Callable[[], Load] | None = None
        self._unreported: deque[tuple[int, int]] = deque()
        self._unreported_tokens = 0

    @property
    def in_flight(self) -> int:
        """This router's requests there."""
        return self.state.in_flight

    def view(self) -> Backend:
        """The backend as a value, for one decision."""
        if self._read_load is not None:
            self.state.load = self._read_load()
            self._read_load = None
        return self.state

    def touch(self) -> None:
        """Something that a decision sees is different now."""
        self.state.outlook = None

    def set_peers(self, routers: int) -> None:
        """So many routers send there, this one included: their dispatches are like its own."""
        self._peers = routers
        self._show_unreported()

    def started(self, start: int, prompt_tokens: int) -> None:
        """A request was sent: the session's start number `start`, with so many uncached tokens."""
        self._unreported.append((start, prompt_tokens))
        self._unreported_tokens += prompt_tokens
        state = self.state
        state.in_flight += 1
        state.sent_since += self._peers
        state.sent_tokens_since += prompt_tokens * self._peers
        state.outlook = None

    def ended(self, count: int = 1) -> None:
        """So many requests are over."""
        state = self.state
        state.in_flight -= count
        state.ended_since += count
        if state.load is _NO_LOAD and self._read_load is None:
            # Some never report: what they were sent would be remembered for ever.
            unreported = self._unreported
            while len(unreported) > state.in_flight:
                self._unreported_tokens -= unreported.popleft()[1]
                state.ended_since -= 1
            self._show_unreported()
        state.outlook = None

    def reported(self, load: Load, starts_seen: int) -> None:
        """The backend's own figures; what was sent after the start `starts_seen` stays added."""
        self.reported_later(lambda: load, starts_seen)

    def reported_later(self, read: Callable[[], Load], starts_seen: int) -> None:
        """As `reported`, with figures that are read when the next decision wants them."""
        self._read_load = read
        self.state.ended_since = 0
        unreported = self._unreported
        while unreported and unreported[0][0] <= starts_seen:
            self._unreported_tokens -= unreported.popleft()[1]
        self._show_unreported()

    def answered(self, output_tokens: int) -> None:
        """An answer of this length is complete."""
        state = self.state
        state.mean_output += _MEAN_WEIGHT * (output_tokens - state.mean_output)

    def first_token(self, seconds: float) -> None:
        """One came so long after its dispatch. For `c3` and providers, never the speed ratio."""
        state = self.state
        state.ttft += (_TTFT_WEIGHT if state.ttft else 1.0) * (seconds - state.ttft)

    def connected(self, now: float) -> None:
        """A new session: nothing of an earlier one holds."""
        self.state.ready_since = now
        self.state.health = Health.READY
        self.state.load = _NO_LOAD
        self._read_load = None
        self._forget()

    def disconnected(self, health: Health) -> None:
        """The session is over, and every request on it."""
        self.state.health = health
        self._forget()

    def _forget(self) -> None:
        self.state.in_flight = 0
        self.state.ended_since = 0
        self._unreported.clear()
        self._unreported_tokens = 0
        self._show_unreported()

    def _show_unreported(self) -> None:
        state = self.state
        state.sent_since = len(self._unreported) * self._peers
        state.sent_tokens_since = self._unreported_tokens * self._peers
        state.outlook = None
