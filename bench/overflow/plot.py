"""Draws attainment over cloud cost, and requests over time by who served them, as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.overflow.plan import Strategy
from bench.overflow.summary import cost_per_1000, of

Record = Mapping[str, Any]

_STYLES = {
    Strategy.ROUTER: ("#0b6e4f", "o"),
    Strategy.CAP: ("#7b2d8b", "^"),
    Strategy.LOOSE_CAP: ("#cf9ad9", "^"),
    Strategy.LOCAL: ("#1f5fa8", "s"),
    Strategy.CLOUD: ("#c77d0a", "D"),
}
_LOCAL, _CLOUD, _NOBODY = "#0b6e4f", "#c77d0a", "#b3261e"
_OVER_TIME = (Strategy.ROUTER, Strategy.CAP)


def draw(record: Record, file: Path) -> None:
    """Writes the picture. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    # The same picture for the same figures: no date, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "anabranch", "svg.fonttype": "none"})
    from matplotlib import pyplot

    samples = record["samples"]
    shown = [strategy for strategy in _OVER_TIME if of(samples, strategy)]
    picture, panels = pyplot.subplots(
        1, 1 + len(shown), figsize=(5.2 * (1 + len(shown)), 4.2), squeeze=False
    )
    _attainment(panels[0][0], samples)
    for panel, strategy in zip(panels[0][1:], shown, strict=True):
        _over_time(panel, of(samples, strategy)[0], record)
        panel.set_title(f"{strategy.label}, round 1")
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)


def _attainment(panel: Any, samples: Sequence[Record]) -> None:
    for strategy, (colour, shape) in _STYLES.items():
        mine = of(samples, strategy)
        if not mine:
            continue
        costs = [cost_per_1000(sample) / 1e3 for sample in mine]
        shares = [100 * sample["allowed"]["slo_attainment"] for sample in mine]
        panel.scatter(costs, shares, color=colour, marker=shape, label=strategy.label, alpha=0.8)
    panel.set_xlabel("cloud cost, thousand invented µUSD for 1,000 allowed requests")
    panel.set_ylabel("allowed requests in time, %")
    panel.grid(visible=True, alpha=0.25)
    panel.legend(frameon=False, fontsize=7, loc="lower right")
    panel.set_title("a point for each round")


def _over_time(panel: Any, sample: Record, record: Record) -> None:
    line = sample["timeline"]
    seconds = range(len(line["offered"]))
    below = [0] * len(line["offered"])
    for name, colour, label in (
        ("local", _LOCAL, "served locally"),
        ("cloud", _CLOUD, "served by the cloud"),
        ("refused", _NOBODY, "not served"),
    ):
        panel.bar(
            seconds, line[name], bottom=below, color=colour, width=1.0, label=label, align="edge"
        )
        below = [a + b for a, b in zip(below, line[name], strict=True)]
    panel.axhline(
        record["capacity"]["requests_per_second"],
        color="black",
        linewidth=0.8,
        linestyle="--",
        label="local capacity",
    )
    panel.set_xlabel("arrival, s")
    panel.set_ylabel("requests a second")
    panel.legend(frameon=False, fontsize=7)
