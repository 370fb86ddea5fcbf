"""Draws tokens a second and the time to the first token over concurrent streams, as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from bench.engine import summary
from bench.engine.plan import Path

_STYLES = {
    Path.OFFLINE: ("#444444", "x"),
    Path.ASYNC: ("#1f5fa8", "s"),
    Path.SERVE: ("#c77d0a", "v"),
    Path.SESSION: ("#0b6e4f", "o"),
    Path.ROUTER: ("#8cc5a8", "D"),
}
_PANELS = (
    ("tokens_per_second", "output tokens/s"),
    ("ttft_p50_ms", "first token, p50, ms"),
    ("tpot_p50_ms", "each further token, p50, ms"),
)


def draw(record: Mapping[str, Any], file: FilePath) -> None:
    """Writes the picture. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    # The same picture for the same figures: no date, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "anabranch", "svg.fonttype": "none"})
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(1, len(_PANELS), figsize=(5 * len(_PANELS), 4))
    rows = summary.rows(record)
    for panel, (name, title) in zip(panels, _PANELS, strict=True):
        _lines(panel, rows, name)
        panel.set_xlabel("streams at once")
        panel.set_title(title)
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.25)
    panels[0].legend(frameon=False, fontsize=8)
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)


def _lines(panel: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    for path, (colour, shape) in _STYLES.items():
        mine = [
            (row["streams"], row[name])
            for row in rows
            if row["path"] == path.value and row[name]["median"] is not None
        ]
        if not mine:
            continue
        streams = [at for at, _ in mine]
        middles = [found["median"] for _, found in mine]
        spread = [
            [found["median"] - found["min"] for _, found in mine],
            [found["max"] - found["median"] for _, found in mine],
        ]
        panel.errorbar(
            streams,
            middles,
            yerr=spread,
            color=colour,
            marker=shape,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=path.label,
        )
