"""How long to wait before the next connection. Pure; waits for nothing itself."""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0


def reconnect_delay(failures: int, rng: Callable[[], float]) -> float:
    """Seconds before the next connection after `failures` in a row that never became ready.

    Exponential from 0.1 s to 2 s with half of it random; a connection that had been ready is
    replaced within 50 ms, spread so that the callers of one lost process do not arrive at once.
    """
    if failures == 0:
        return rng() * FIRST_DELAY / 2
    longest: float = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (failures - 1))
    return longest * (0.5 + rng() / 2)
