"""Counts what arrives during a look, and sums it up. Knows no wire.

Delays are measured on few of the streams, so that measuring costs little where many tokens fly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

WATCHED = 16
"""Streams, of all together, whose delays between tokens are recorded."""


class Meter:
    """What has arrived since `reset`. The loads add to its fields directly: it is the hot path."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the look begins."""
        self.tokens = 0
        self.messages = 0
        self.requests = 0
        self.ttfts: list[float] = []
        self.gaps: list[float] = []
        self.errors: Counter[str] = Counter()

    def summary(self, seconds: float) -> dict[str, Any]:
        """As JSON values; delays in milliseconds."""
        ttfts = sorted(value * 1e3 for value in self.ttfts)
        gaps = sorted(value * 1e3 for value in self.gaps)
        middle = percentile(gaps, 50)
        jitters = sorted(abs(gap - middle) for gap in gaps)
        return {
            "seconds": seconds,
            "tokens": self.tokens,
            "messages": self.messages,
            "requests": self.requests,
            "tokens_per_second": self.tokens / seconds,
            "requests_per_second": self.requests / seconds,
            "tokens_per_message": self.tokens / self.messages if self.messages else math.nan,
            "ttft_p50_ms": percentile(ttfts, 50),
            "ttft_p99_ms": percentile(ttfts, 99),
            "gap_p50_ms": middle,
            "gap_p99_ms": percentile(gaps, 99),
            "jitter_p99_ms": percentile(jitters, 99),
            "errors": dict(self.errors),
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; NaN of none."""
    if not ordered:
        return math.nan
    rank = math.ceil(share / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]
