"""The valve of a model: whether its excess flows to the cloud. It chooses no backend.

An open valve does not divert the stream; it spills what local backends cannot take, request by
request. Its hysteresis lies in what "can take" means:

- closed: a local backend takes what it is predicted to serve within the objective (feasible);
- open: only what it is predicted to serve `leave` times sooner than that (comfortably feasible).

Without that margin, requests near the limit would go now here, now there with every token that
is generated, and each that comes back fills the place that was about to become free. With it the
first request that does not fit opens the valve, and local load must fall by a real amount, and
stay there for `hold` seconds, before the full objective counts again. What a local backend can
take comfortably is taken at every moment, so that only the excess is paid for.

The rule for one request:

    open = valve.update(feasible, comfortable, now)
    to the cloud = open and not comfortable
"""

from __future__ import annotations

from math import inf

from services.router.core.policy import OverflowRules


class Valve:
    """The valve of one model. `open` and `opened`, how often it opened, may be read at any time."""

    __slots__ = ("_comfortable_since", "open", "opened", "rules")

    def __init__(self, rules: OverflowRules) -> None:
        self.rules = rules
        self.open = False
        self.opened = 0
        self._comfortable_since = inf

    def update(self, local_feasible: bool, comfortably_feasible: bool, now: float) -> bool:
        """What one request found out about the local backends; whether the valve is open.

        `now` is in seconds on one monotonic clock. Opens at once when nothing local is feasible,
        closes after `hold` seconds in which every request found a backend comfortable.
        """
        if not (local_feasible and comfortably_feasible):
            self._comfortable_since = inf
            if not local_feasible and not self.open and self.rules.enabled:
                self.open = True
                self.opened += 1
        elif self.open:
            if self._comfortable_since == inf:
                self._comfortable_since = now
            if now - self._comfortable_since >= self.rules.hold:
                self.open = False
                self._comfortable_since = inf
        return self.open
