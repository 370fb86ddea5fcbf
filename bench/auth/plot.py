"""Draws what verifying costs and how soon revocations hold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from bench.auth import plan, targets

matplotlib.use("svg")

import matplotlib.pyplot as plt

_COLOURS = {"the same replica": "#1f6f8b", "another replica": "#c0392b"}


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Bars of medians with the spread over the rounds beside the distributions of delays."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    if record.get(plan.VERIFICATION):
        _costs(record, left)
    if record.get(plan.REVOCATION):
        _delays(record, right)
    figure.savefig(file)
    plt.close(figure)


def _costs(record: Mapping[str, Any], axes: Any) -> None:
    names = list(reversed(record[plan.VERIFICATION][0]))
    found = [targets.of_rounds(record, plan.VERIFICATION, name, "cpu_us") for name in names]
    middles = [statistics.median(values) for values in found]
    low = [middle - min(values) for middle, values in zip(middles, found, strict=True)]
    high = [max(values) - middle for middle, values in zip(middles, found, strict=True)]
    colours = [
        "#b0b7bd" if name.startswith("bare") or "without" in name else "#1f6f8b" for name in names
    ]
    axes.barh(names, middles, xerr=[low, high], color=colours, ecolor="#444", capsize=2)
    axes.set_xlabel("µs of CPU (grey: baselines)")


def _delays(record: Mapping[str, Any], axes: Any) -> None:
    styles = ("-", "--", ":")
    for database, style in zip(record[plan.REVOCATION], styles, strict=False):
        pooled: dict[str, list[float]] = {}
        for _, followed, seconds in targets.delays(record, database):
            pooled.setdefault(followed, []).extend(seconds)
        for followed, seconds in pooled.items():
            ordered = sorted(seconds)
            shares = [100 * (rank + 1) / len(ordered) for rank in range(len(ordered))]
            label = f"{followed}, {database}"
            axes.step(ordered, shares, style, color=_COLOURS[followed], where="post", label=label)
    axes.set_xlabel("s from the revocation until a verifier refuses")
    axes.set_ylabel("% of revocations")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", fontsize="small")
