"""Draws a dashboard from what a Prometheus says, without a Grafana: `python -m … --help`.

It reads the JSON that Grafana reads: grid, queries, units, colours, thresholds. What it draws shows
what an operator sees there; it is no screenshot. Needs matplotlib (requirements/bench.txt).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot

from tools.dashboards.__main__ import FOLDER
from tools.dashboards.asking import AskedPanel, Prometheus, QueryFailed, named, panels
from tools.dashboards.curves import paint_curves
from tools.dashboards.page import (
    CARD,
    COLOURS,
    FAINT,
    GRID,
    PAGE,
    PALETTE,
    TEXT,
    UNIT,
    WIDE,
    Frame,
    Line,
    Page,
    judged,
)


def draw(
    dashboard: Mapping[str, Any], source: Prometheus, start: float, end: float, file: Path
) -> None:
    """Draws a dashboard between two times, in Unix seconds. Raises QueryFailed."""
    # Whole seconds, so that the times of an answer are those asked for.
    step = max(math.ceil((end - start) / 240), 1)
    start, end = math.floor(start), math.floor(start) + (end - start) // step * step
    window = f"{max(4 * step, 15)}s"
    shapes = [panel["gridPos"] for panel in dashboard["panels"]]
    tall = max(shape.get("y", 0) + shape["h"] for shape in shapes) * UNIT + 0.75
    figure = pyplot.figure(figsize=(WIDE, tall), facecolor=PAGE, dpi=100)
    first, last = datetime.fromtimestamp(start), datetime.fromtimestamp(end)
    page = Page(figure, tall, (first, last))
    page.write(0.16, 0.38, dashboard["title"], size=15, weight="bold")
    page.write(
        WIDE - 0.16,
        0.38,
        f"{first:%H:%M} to {last:%H:%M}, drawn from Prometheus",
        colour=FAINT,
        right=True,
    )
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            y = panel["gridPos"].get("y", 0) * UNIT + 0.55 + UNIT * 0.7
            page.write(0.16, y, panel["title"], size=11, weight="bold")
    for asked in panels(dashboard, source, window):
        lines = _lines(asked, source, start, end, step)
        _PAINTERS[asked.shape["type"]](page.panel(asked.shape), asked.shape, lines)
    figure.savefig(file, facecolor=PAGE)
    pyplot.close(figure)


def _lines(
    asked: AskedPanel, source: Prometheus, start: float, end: float, step: float
) -> list[Line]:
    if asked.shape["type"] != "timeseries":
        start = end  # only what is now
    found = []
    for query in asked.queries:
        for series in source.range(query.expr, start, end, step):
            name = named(query.legend, series.labels)
            found.append((name, series))
    colours = _fixed(asked.shape)
    free = iter(PALETTE * (len(found) // len(PALETTE) + 1))
    made = []
    for name, series in sorted(found, key=lambda each: each[0]):
        # Where Prometheus has nothing there is a gap, as in Grafana.
        values = [math.nan] * (int((end - start) / step) + 1)
        for at, value in series.points:
            values[round((at - start) / step)] = value
        match = next((c for pattern, c in colours if re.fullmatch(pattern, name)), None)
        made.append(
            Line(
                name,
                COLOURS.get(match, match) if match else next(free),
                [datetime.fromtimestamp(start + n * step) for n in range(len(values))],
                values,
                series.labels,
            )
        )
    return made


def _fixed(shape: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (override["matcher"]["options"], override["properties"][0]["value"]["fixedColor"])
        for override in shape["fieldConfig"]["overrides"]
    ]


def _paint_numbers(frame: Frame, shape: Mapping[str, Any], lines: Sequence[Line]) -> None:
    shown = [line for line in lines if math.isfinite(line.newest)]
    if not shown:
        frame.middle(shape["fieldConfig"]["defaults"].get("noValue", "no data"))
        return
    filled = shape["options"]["colorMode"] == "background"
    columns = min(len(shown), max(1, int(frame.width / 1.6)))
    rows = math.ceil(len(shown) / columns)
    for number, line in enumerate(shown):
        row, column = divmod(number, columns)
        word, colour = judged(shape, line.newest)
        width, height = (frame.width - 0.1) / columns, (frame.height - 0.4) / rows
        left = frame.left + 0.05 + column * width
        cell = Frame(frame.page, left, frame.top + 0.34 + row * height, width, height)
        if filled:
            inner = Frame(frame.page, left + 0.04, cell.top, width - 0.08, height - 0.05)
            inner.fill(colour, colour)
        ink = PAGE if filled else colour
        size = 19 if rows == 1 else 11
        place = (left + width / 2) / WIDE
        middle = 1 - (cell.top + height / 2) / frame.page.tall
        named_too = bool(line.name) and len(shown) > 1
        lift = 0.09 / frame.page.tall if named_too else 0.0
        write = frame.page.figure.text
        write(place, middle + lift, word, ha="center", va="center", size=size, color=ink,
              weight="bold")  # fmt: skip
        if named_too:
            below = middle - 0.13 / frame.page.tall
            write(place, below, line.name, ha="center", va="center", size=7, color=ink)


def _paint_bars(frame: Frame, shape: Mapping[str, Any], lines: Sequence[Line]) -> None:
    shown = [line for line in lines if math.isfinite(line.newest)]
    defaults = shape["fieldConfig"]["defaults"]
    if not shown:
        frame.middle(defaults.get("noValue", "no data"))
        return
    axes = frame.axes(1.7, 0.2)
    highest = defaults.get("max") or max(line.newest for line in shown) or 1.0
    for number, line in enumerate(shown):
        word, colour = judged(shape, line.newest)
        axes.barh(number, highest, color=GRID, height=0.6)
        axes.barh(number, min(line.newest, highest), color=colour, height=0.6)
        axes.text(highest, number, f" {word} ", color=TEXT, va="center", ha="right", size=10,
                  weight="bold")  # fmt: skip
    axes.set_yticks(range(len(shown)), [line.name for line in shown])
    axes.set_xlim(0, highest)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_facecolor(CARD)
    axes.tick_params(colors=TEXT, labelsize=8.5, length=0, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _paint_table(frame: Frame, shape: Mapping[str, Any], lines: Sequence[Line]) -> None:
    left_out = {"__name__", "job", *_hidden(shape)}
    shown = [line for line in lines if math.isfinite(line.newest)]
    if not shown:
        frame.middle(shape["fieldConfig"]["defaults"].get("noValue", "no data"))
        return
    columns = sorted({name for line in shown for name in line.labels} - left_out)
    valued = "Value" not in left_out
    place = frame.width / (len(columns) + valued)
    for number, name in enumerate([*columns, *(["value"] if valued else [])]):
        x = frame.left + 0.12 + number * place
        frame.page.write(x, frame.top + 0.5, name, size=8, colour=FAINT)
        for row, line in enumerate(shown[: int((frame.height - 0.6) / 0.2)]):
            word, colour = line.labels.get(name, ""), TEXT
            if number == len(columns):
                word, colour = judged(shape, line.newest)
            frame.page.write(x, frame.top + 0.72 + row * 0.2, word, size=8.5, colour=colour)


def _hidden(shape: Mapping[str, Any]) -> set[str]:
    return {
        name
        for transformation in shape["transformations"]
        for name in transformation["options"]["excludeByName"]
    }


_PAINTERS = {
    "timeseries": paint_curves,
    "stat": _paint_numbers,
    "bargauge": _paint_bars,
    "table": _paint_table,
}


def main() -> int:
    """Draws the dashboards that the arguments name; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboards.picture",
        description="Draws the dashboards from a running Prometheus, as PNG files.",
    )
    parser.add_argument("--prometheus", default="127.0.0.1:9090", help="host:port (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parser.add_argument("names", nargs="*", help="cluster, router, …; all without")
    options = parser.parse_args()
    end = time.time()
    options.out.mkdir(parents=True, exist_ok=True)
    for file in sorted(FOLDER.glob("*.json")):
        if options.names and file.stem not in options.names:
            continue
        dashboard = json.loads(file.read_text(encoding="utf-8"))
        picture = options.out / f"dashboard-{file.stem}.png"
        try:
            draw(
                dashboard,
                Prometheus(options.prometheus),
                end - options.minutes * 60,
                end,
                picture,
            )
        except QueryFailed as failed:
            print(failed, file=sys.stderr)
            return 1
        print(f"drew {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
