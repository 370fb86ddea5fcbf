"""Draws CDFs of the time to the first token, and attainment over cloud cost, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.routing.contenders import label
from bench.routing.scenarios import BY_NAME
from bench.routing.targets import CANDIDATE, where

Rows = Sequence[Mapping[str, Any]]

_STYLES: dict[str, tuple[str, str]] = {
    CANDIDATE: ("#0b6e4f", "-"),
    "core-misjudged": ("#4fa387", "--"),
    "core-assumed": ("#4fa387", "--"),
    "core-no-affinity": ("#8cc5a8", ":"),
    "lor": ("#b3261e", "-"),
    "c3": ("#1f5fa8", "-"),
    "lmetric": ("#6aa0d8", "--"),
    "gie": ("#c77d0a", "-"),
    "peak-ewma": ("#7b2d8b", "-"),
    "p2c": ("#d98880", "--"),
    "prequal": ("#cf9ad9", "--"),
    "round-robin": ("#999999", ":"),
    "oracle": ("#222222", ":"),
}
_OTHER = ("#555555", "-.")

_COLUMNS = 3


def installed() -> bool:
    """Whether the drawing library is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(rows: Rows, folder: Path, name: str) -> list[str]:
    """Writes the pictures that there are figures for; returns their file names.

    Needs `installed()`.
    """
    import matplotlib

    matplotlib.use("svg")
    # The same picture for the same figures: no date, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "anabranch", "svg.fonttype": "none"})
    written = []
    for suffix, mine, picture in (
        ("ttft", [row for row in rows if BY_NAME[row["scenario"]].cloud is None], _cdfs),
        (
            "overflow",
            [row for row in rows if BY_NAME[row["scenario"]].cloud is not None],
            _overflow,
        ),
    ):
        if mine:
            file = f"{name}-{suffix}.svg"
            picture(mine, folder / file)
            written.append(file)
    return written


def _panels(rows: Rows) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["scenario"], row["routers"]) for row in rows))


def _cdfs(rows: Rows, file: Path) -> None:
    """How many requests wait longer than so long: the tail is what differs."""
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator

    names = _panels(rows)
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    picture, panels = pyplot.subplots(
        lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False, sharey=True
    )
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    labelled: dict[str, Any] = {}
    for panel, (name, routers) in zip(panels.flat, names, strict=False):
        mine = [r for r in rows if (r["scenario"], r["routers"]) == (name, routers)]
        for row in mine:
            colour, dashes = _STYLES.get(row["policy"], _OTHER)
            points = [(value, 100.0 - at) for value, at in row["cdf"] if at < 100]
            (line,) = panel.plot(
                [value for value, _ in points],
                [share for _, share in points],
                color=colour,
                linestyle=dashes,
                linewidth=2.2 if row["policy"] == CANDIDATE else 1.2,
                zorder=3 if row["policy"] == CANDIDATE else 2,
            )
            labelled.setdefault(_plain(row["policy"]), line)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylim(0.1, 100)
        panel.set_yticks([0.1, 1, 5, 10, 50, 100], ["p99.9", "p99", "p95", "p90", "p50", "p0"])
        least, most = panel.get_xlim()
        # Over many decades there is room for their ends only.
        subs = (1.0, 2.0, 5.0) if most < 300 * least else (1.0,)
        panel.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.tick_params(axis="x", labelsize=7)
        panel.minorticks_off()
        panel.set_title(where(name, routers), fontsize=10)
        panel.set_xlabel("time to first token, ms")
        panel.grid(visible=True, alpha=0.25)
    picture.legend(
        list(labelled.values()),
        list(labelled),
        loc="lower center",
        ncols=min(6, len(labelled)),
        frameon=False,
        fontsize=8,
    )
    # Room below for the legend, whatever the number of panels.
    picture.tight_layout(rect=(0, 0.6 / (3.4 * lines), 1, 1))
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)


def _overflow(rows: Rows, file: Path) -> None:
    from matplotlib import pyplot

    names = _panels(rows)
    picture, panels = pyplot.subplots(
        1, len(names), figsize=(5.2 * len(names), 3.8), squeeze=False, sharey=True
    )
    for panel, (name, routers) in zip(panels[0], names, strict=True):
        mine = [r for r in rows if (r["scenario"], r["routers"]) == (name, routers)]
        caps = [row for row in mine if row["policy"].startswith("cap-")]
        _points(panel, caps, "#777777", "o-", "static caps")
        for row in caps[::2]:
            panel.annotate(
                row["policy"].rpartition("-")[2],
                _place(row),
                textcoords="offset points",
                xytext=(4, -10),
                fontsize=7,
                color="#777777",
            )
        for policy, colour, shape in (
            ("gie-saturation", "#c77d0a", "s"),
            (CANDIDATE, "#0b6e4f", "D"),
        ):
            found = [row for row in mine if row["policy"] == policy]
            _points(panel, found, colour, shape, _plain(policy))
        panel.set_title(where(name, routers), fontsize=10)
        panel.set_xlabel("cloud cost, % of sending everything there")
        panel.set_xlim(left=0)
        panel.grid(visible=True, alpha=0.25)
    panels[0][0].set_ylabel("answers within the objective, %")
    panels[0][0].legend(frameon=False, fontsize=8)
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)


def _plain(policy: str) -> str:
    """Its name without Markdown's marks."""
    return "Anabranch" if policy == CANDIDATE else label(policy).replace("…", "Anabranch,")


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * row["cloud_cost"]["median"], 100 * row["slo"]["median"]


def _points(panel: Any, rows: Rows, colour: str, shape: str, label: str) -> None:
    if not rows:
        return
    places = [_place(row) for row in rows]
    panel.errorbar(
        [x for x, _ in places],
        [y for _, y in places],
        xerr=_spread(rows, "cloud_cost"),
        yerr=_spread(rows, "slo"),
        color=colour,
        fmt=shape,
        markersize=5,
        linewidth=1,
        capsize=2,
        label=label,
    )


def _spread(rows: Rows, name: str) -> list[list[float]]:
    figures = [row[name] for row in rows]
    return [
        [100 * (one["median"] - one["min"]) for one in figures],
        [100 * (one["max"] - one["median"]) for one in figures],
    ]
