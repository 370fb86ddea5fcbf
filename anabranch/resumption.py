"""Whether and when a session that lost its connection tries another. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from anabranch.backoff import reconnect_delay
from anabranch.errors import AnabranchError, error_for

# Ends of a session that no other connection changes.
_FINAL = frozenset(
    {
        "SESSION_LOST",
        "SESSION_PROTOCOL",
        "INVALID_REQUEST",
        "TOO_LARGE",
        "ACCESS_DENIED",
        "UNSUPPORTED",
    }
)


class Resumption:
    """The attempts of one session; the service keeps it for a window of seconds."""

    def __init__(self, rng: Callable[[], float]) -> None:
        self._rng = rng
        self._cause: AnabranchError | None = None
        self._failures = 0
        self.lost_at = 0.0
        """When the last connection that had carried the session was lost."""

    def after(self, failure: AnabranchError, *, began: bool, window: float, now: float) -> float:
        """Seconds until the next attempt. `began`: the failed one had carried the session.

        Raises the error that ends the session when there is to be none.
        """
        if began or self._cause is None:
            self._cause, self._failures, self.lost_at = failure, 0, now
        else:
            self._failures += 1
        if failure.reason == "SESSION_LOST" and self._cause.reason == "SLOW_READER":
            raise self._cause  # which is why it is lost
        if failure.reason in _FINAL:
            raise failure
        if now - self.lost_at >= window:
            raise error_for(
                "SESSION_LOST",
                f"the connection was lost and did not come back within {window:g} s: "
                f"{failure.message}",
                grpc.StatusCode.UNAVAILABLE,
            )
        return reconnect_delay(self._failures, self._rng)
