"""Draws what a chunk costs each reader."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from bench.cloud.plan import CHUNK_US, CONTENDERS

matplotlib.use("svg")

import matplotlib.pyplot as plt


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Bars of medians with the spread over the rounds, on a logarithmic scale, under the load of
    many streams."""
    load = record["plan"]["loads"][1]["name"]
    names, middles, low, high, colours = [], [], [], [], []
    for contender in reversed(CONTENDERS):
        found = [
            look["cost"][load][contender.name]["chunk_us"]
            for look in record["looks"]
            if contender.name in look["cost"][load]
        ]
        if not found:
            continue
        middle = statistics.median(found)
        names.append(contender.name)
        middles.append(middle)
        low.append(middle - min(found))
        high.append(max(found) - middle)
        colours.append("#1f6f8b" if contender.kind == "proxy" else "#b0b7bd")
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.barh(names, middles, xerr=[low, high], color=colours, ecolor="#444", capsize=2)
    axes.axvline(CHUNK_US, color="#c0392b", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel(f"µs of CPU a streamed chunk, {load} streams (dashed: our target)")
    figure.savefig(file)
    plt.close(figure)
