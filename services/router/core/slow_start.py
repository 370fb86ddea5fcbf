"""How much of its share a backend gets that became ready a moment ago: it ramps up.

An engine that is new, or returns, has cold caches, and its load report has not caught up with
what many routers send to it at once.

A backend of warmth w counts its load, the request that is being placed included, as load / w:

    score = (load + own) / warmth

Policies that prefer the lowest score then level the scores, so that its share of the work is w of
what its equals get. The request itself must be inside: an empty backend's load is 0 whatever
divides it. Policies that work with weights multiply the weight by w.

Source: the slow start of Envoy's load balancers, linear (aggression 1), with a least weight of
10 %: a backend that gets nothing would never warm up.
"""

from __future__ import annotations

FLOOR = 0.1


def warmth(since_ready: float, ramp: float, floor: float = FLOOR) -> float:
    """From `floor` at the moment of readiness to 1 after `ramp` seconds, linearly."""
    if since_ready >= ramp:
        return 1.0
    if since_ready <= 0.0:
        return floor
    return floor + (1.0 - floor) * since_ready / ramp
