"""A sheet with panels on it, measured in inches from its upper left corner; it draws no data.

Needs matplotlib (requirements/bench.txt).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from matplotlib import patches

from tools.dashboards import units

PAGE, CARD, EDGE, TEXT, FAINT, GRID = (
    *("#111217", "#181b1f", "#2c3036"),
    *("#d5d6e0", "#8e909c", "#2a2d33"),
)
COLOURS = {
    "green": "#73bf69",
    "yellow": "#f2cc0c",
    "blue": "#5794f2",
    "orange": "#ff9830",
    "red": "#f2495c",
}
PALETTE = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff9830", "#f2495c"),
    *("#5794f2", "#b877d9", "#96d98d", "#fade2a", "#56a64b", "#e02f44", "#a352cc"),
)

WIDE, UNIT, GAP = 17.0, 0.34, 0.09
"""Inches: of the page, of one unit of the grid's height, between panels."""


@dataclass(frozen=True)
class Line:
    """One series with its name and colour."""

    name: str
    colour: str
    at: Sequence[datetime]
    values: Sequence[float]
    labels: Mapping[str, str]

    @property
    def newest(self) -> float:
        """The last value that is a number; NaN where there is none."""
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)


class Page:
    """The sheet; places are in inches from its upper left corner."""

    def __init__(self, figure: Any, tall: float, span: tuple[datetime, datetime]) -> None:
        """`span` is what every axis of time shows."""
        self.figure = figure
        self.tall = tall
        self.span = span

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9,
        colour: str = TEXT,
        weight: str = "normal",
        right: bool = False,
    ) -> None:
        """Text whose base line begins, or ends, there."""
        place = (x / WIDE, 1 - y / self.tall)
        side = "right" if right else "left"
        self.figure.text(*place, text, size=size, color=colour, weight=weight, ha=side)

    def panel(self, shape: Mapping[str, Any]) -> Frame:
        """An empty panel with its title."""
        place = shape["gridPos"]
        left = place.get("x", 0) / 24 * WIDE + GAP / 2
        top = place.get("y", 0) * UNIT + 0.55 + GAP / 2
        frame = Frame(self, left, top, place["w"] / 24 * WIDE - GAP, place["h"] * UNIT - GAP)
        frame.fill(CARD)
        self.write(left + 0.1, top + 0.22, shape["title"], size=9, weight="bold")
        return frame


@dataclass(frozen=True)
class Frame:
    """A panel's place on the page, in inches."""

    page: Page
    left: float
    top: float
    width: float
    height: float

    def fill(self, colour: str, edge: str = EDGE) -> None:
        """Paints it."""
        corner = (self.left / WIDE, 1 - (self.top + self.height) / self.page.tall)
        size = (self.width / WIDE, self.height / self.page.tall)
        box = patches.Rectangle(
            corner,
            *size,
            facecolor=colour,
            edgecolor=edge,
            transform=self.page.figure.transFigure,
            zorder=-1,
        )
        self.page.figure.add_artist(box)

    def axes(self, left: float, below: float) -> Any:
        """Axes inside, with room on the left and below."""
        width, height = self.width - left - 0.15, self.height - below - 0.36
        corner = (self.left + left, self.page.tall - self.top - self.height + below)
        place = (corner[0] / WIDE, corner[1] / self.page.tall)
        return self.page.figure.add_axes((*place, width / WIDE, height / self.page.tall))

    def middle(self, text: str, colour: str = FAINT, size: float = 10) -> None:
        """Text in the middle."""
        x = (self.left + self.width / 2) / WIDE
        y = 1 - (self.top + self.height / 2 + 0.08) / self.page.tall
        self.page.figure.text(x, y, text, ha="center", va="center", color=colour, size=size)


def steps(shape: Mapping[str, Any]) -> list[tuple[float, str]]:
    """A panel's thresholds, lowest first, with their colours."""
    found = shape["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return [
        (-math.inf if step.get("value") is None else step["value"], COLOURS[step["color"]])
        for step in found
    ]


def judged(shape: Mapping[str, Any], value: float) -> tuple[str, str]:
    """What stands for a value, and its colour."""
    defaults = shape["fieldConfig"]["defaults"]
    for mapping in defaults.get("mappings", ()):
        word = mapping["options"].get(f"{value:.0f}")
        if word:
            return str(word["text"]), COLOURS[word["color"]]
    colour = next((c for least, c in reversed(steps(shape)) if value >= least), COLOURS["green"])
    return units.text(value, defaults["unit"], defaults.get("decimals")), colour
