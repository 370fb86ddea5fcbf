"""Thresholds of alerts, read out of the rules, so that a dashboard turns red where an alert fires.

An alert's threshold is the first number that its expression compares with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools.dashboards.panels import Limit

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "deploy/helm/anabranch/files/rules/anabranch.yaml"

_COMPARISON = re.compile(r"([<>]=?|==)\s*([\d.]+)(?:\s*\*\s*([\d.]+))?")


def alerts(rules: Path = RULES) -> Iterator[dict[str, Any]]:
    """Every alerting rule of a file."""
    for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]:
        yield from (rule for rule in group["rules"] if "alert" in rule)


@cache
def limit(alert: str) -> Limit:
    """The threshold of an alert. Raises LookupError where there is no such alert or none in it."""
    for rule in alerts():
        if rule["alert"] == alert:
            found = _COMPARISON.search(rule["expr"])
            if found is None:
                raise LookupError(f"{alert} compares with no number")
            sign, number = found[1], float(found[2]) * float(found[3] or 1)
            # `== 0` is bad at 0, `== 1` at 1: between the two lies half.
            value = 0.5 if sign == "==" else number
            below = sign.startswith("<") or (sign == "==" and number == 0)
            return Limit(value, below, rule["labels"]["severity"])
    raise LookupError(f"no alert is called {alert}")
