"""Draws CPU a token over concurrent streams, paced and unpaced, as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from bench.dataplane.plan import SPREAD, STEADY_TOKENS, Path

_STYLES = {
    Path.ROUTER_SESSION: ("#0b6e4f", "o"),
    Path.ROUTER_PLAIN: ("#8cc5a8", "s"),
    Path.ENVOY: ("#7b2d8b", "^"),
    Path.ENVOY_LEAN: ("#cf9ad9", "^"),
    Path.NGINX: ("#c77d0a", "v"),
    Path.SMG: ("#6aa0d8", "D"),
    Path.SMG_GRPC: ("#1f5fa8", "D"),
    Path.LITELLM: ("#b3261e", "X"),
}


def installed() -> bool:
    """Whether the drawing library is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(rows: Sequence[Mapping[str, Any]], file: FilePath) -> None:
    """Writes the picture. Needs `installed()`."""
    import matplotlib

    matplotlib.use("svg")
    # The same picture for the same figures: no date, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "anabranch", "svg.fonttype": "none"})
    from matplotlib import pyplot

    paces = sorted({row["pace_ms"] for row in rows}, reverse=True)
    picture, panels = pyplot.subplots(
        1, len(paces), figsize=(5.2 * len(paces), 4.2), sharey=True, squeeze=False
    )
    for panel, pace in zip(panels[0], paces, strict=True):
        _panel(panel, [row for row in rows if row["pace_ms"] == pace])
        panel.set_title(f"engine paced, {pace} ms a token" if pace else "engine unpaced")
    panels[0][0].set_ylabel("proxy's CPU, µs a token")
    if panels[0][0].lines:
        panels[0][0].legend(frameon=False, fontsize=7, ncols=2)
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)


def _panel(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for path, (colour, shape) in _STYLES.items():
        mine = sorted(
            (
                row
                for row in rows
                if row["path"] == path
                and row["tokens"] == STEADY_TOKENS
                and row["cell"] != SPREAD.name
                and row["cpu_us_per_token"]["median"] is not None
            ),
            key=lambda row: int(row["streams"]),
        )
        if not mine:
            continue
        figures = [row["cpu_us_per_token"] for row in mine]
        panel.errorbar(
            [row["streams"] for row in mine],
            [f["median"] for f in figures],
            yerr=[
                [f["median"] - f["min"] for f in figures],
                [f["max"] - f["median"] for f in figures],
            ],
            color=colour,
            marker=shape,
            capsize=2,
            label=path.label,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    streams = sorted({row["streams"] for row in rows})
    panel.set_xticks(streams, [f"{count:,}" for count in streams])
    panel.set_xlim(min(streams) / math.sqrt(2), max(streams) * math.sqrt(2))
    panel.minorticks_off()
    panel.set_xlabel("concurrent streams")
    panel.grid(visible=True, which="both", alpha=0.25)
