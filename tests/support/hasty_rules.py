"""The cluster's alerting rules in a hurry, so that a test need not wait for minutes.

Everything else stays: names, expressions, thresholds, labels.
"""

from __future__ import annotations

import re
from pathlib import Path

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+)([smhd])")
_LEAST_RANGE_S = 5


def seconds(duration: str) -> int:
    """Of a duration as Prometheus writes it, such as 5m."""
    found = _DURATION.fullmatch(duration)
    assert found is not None, duration
    return int(found[1]) * _UNITS[found[2]]


def hasty(rules: Path, where: Path) -> Path:
    """Writes the rules with minutes as seconds: each `for:`, and each range but for 5 s at least.

    A range holds two scrapes at least, one a second, so that rates have a value.
    """

    def of_range(found: re.Match[str]) -> str:
        return f"[{max(seconds(found[1]) // 60, _LEAST_RANGE_S)}s]"

    def of_for(found: re.Match[str]) -> str:
        return f"for: {max(seconds(found[1]) // 60, 1)}s"

    text = rules.read_text(encoding="utf-8")
    text = re.sub(r"\[(\d+[smhd])\]", of_range, text)
    text = re.sub(r"\bfor: (\d+[smhd])\b", of_for, text)
    where.write_text(text, encoding="utf-8")
    return where
