"""How much of its weight a backend gets that has just begun, or returned. Pure."""

from __future__ import annotations

FLOOR = 0.1


def warmth(since_ready: float, ramp: float) -> float:
    """From FLOOR to 1 within `ramp` seconds. A score is divided by it, so that a cold backend
    looks as busy as one with several times its load."""
    if since_ready >= ramp:
        return 1.0
    return FLOOR + (1.0 - FLOOR) * max(since_ready, 0.0) / ramp
