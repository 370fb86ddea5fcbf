"""Draws a panel of lines, or of lines on top of each other: axes, thresholds, legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import dates, patches, ticker

from tools.dashboards import units
from tools.dashboards.page import CARD, COLOURS, FAINT, GRID, TEXT, Frame, Line, steps


def paint_curves(frame: Frame, shape: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Draws the series that have a value; a word where there is none."""
    defaults = shape["fieldConfig"]["defaults"]
    shown = [line for line in lines if not math.isnan(line.newest)]
    if not shown:
        frame.middle(defaults.get("noValue", "no data"))
        return
    columns, rows = _legend_size(shown, frame.width)
    axes = frame.axes(0.78, 0.34 + 0.17 * rows)
    custom = defaults["custom"]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    top = _stack(axes, shown) if stacked else _plot(axes, shown, custom.get("fillOpacity", 0))
    _thresholds(axes, shape, top)
    axes.set_ylim(0, defaults.get("max") or _headroom(top, shape))
    axes.set_facecolor(CARD)
    axes.grid(color=GRID, linewidth=0.7)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=_counts(defaults["unit"], top)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(units.axis(defaults["unit"])))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.set_xlim(*frame.page.span)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    marks = [patches.Patch(color=line.colour, label=line.name or shape["title"]) for line in shown]
    axes.legend(
        handles=marks[:12],
        loc="upper left",
        bbox_to_anchor=(-0.06, -0.24 * 1.25 / (frame.height - 0.7 - 0.17 * rows)),
        ncol=columns,
        frameon=False,
        fontsize=7.5,
        labelcolor=TEXT,
        handlelength=1.1,
        handleheight=0.35,
        columnspacing=1.2,
        borderpad=0,
        labelspacing=0.3,
    )


def _legend_size(lines: Sequence[Line], width: float) -> tuple[int, int]:
    """Columns and rows that the names need."""
    longest = max(len(line.name) for line in lines)
    columns = max(1, min(len(lines), int(width / (0.35 + 0.062 * longest))))
    return columns, math.ceil(min(len(lines), 12) / columns)


def _counts(unit: str, top: float) -> bool:
    return unit == "short" and top >= 2


def _headroom(top: float, shape: Mapping[str, Any]) -> float:
    """Some room above; a threshold that is near is in sight."""
    limits = [least for least, _ in steps(shape) if math.isfinite(least)]
    near = [least for least in limits if least < 3 * top]
    return max([top, *near]) * 1.12 or 1.0


def _plot(axes: Any, lines: Sequence[Line], opacity: float) -> float:
    for line in lines:
        axes.plot(line.at, line.values, color=line.colour, linewidth=1.3)
        axes.fill_between(line.at, line.values, color=line.colour, alpha=opacity / 100, linewidth=0)
    return max(v for line in lines for v in line.values if math.isfinite(v))


def _stack(axes: Any, lines: Sequence[Line]) -> float:
    times = lines[0].at
    rows = [[v if math.isfinite(v) else 0.0 for v in line.values] for line in lines]
    axes.stackplot(times, rows, colors=[line.colour for line in lines], alpha=0.75, linewidth=0)
    return max(map(sum, zip(*rows, strict=True)))


def _thresholds(axes: Any, shape: Mapping[str, Any], top: float) -> None:
    style = shape["fieldConfig"]["defaults"]["custom"].get("thresholdsStyle", {})
    if style.get("mode") != "dashed":
        return
    found = steps(shape)
    for number, (least, colour) in enumerate(found[1:], 1):
        # The colour of the bad side, which may be the one below.
        bad = found[number - 1][1] if colour == COLOURS["green"] else colour
        axes.axhline(least, color=bad, linewidth=1.1, linestyle=(0, (5, 4)))
