"""The values that a dashboard is made of: queries, panels, rows, variables. Values only.

How Grafana spells them is grafana.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """How a panel draws."""

    LINES = "lines"
    STACK = "stack"
    """Lines on top of each other: the parts of a whole."""
    NUMBER = "number"
    """The newest value, large."""
    BARS = "bars"
    """The newest value of each series, as a bar from 0 to `highest`."""
    TABLE = "table"
    """The newest value of each series, a line each, with its labels."""


@dataclass(frozen=True)
class Query:
    """PromQL, and what its series are called: Grafana's `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Limit:
    """Where a panel turns yellow (`severity` warning) or red (critical)."""

    value: float
    below: bool = False
    """Whether less than the value is bad, not more."""
    severity: str = "warning"


@dataclass(frozen=True)
class Panel:
    """One panel. `says` tells a reader what to do about what is seen.

    `alerts` names the alerts that look at the same thing; the first one's threshold is drawn.
    `unit` is Grafana's; `width` is in 24ths of the page, `height` in units of some 30 pixels.
    `colours` gives series whose legend matches a regular expression a colour of Grafana's.
    """

    title: str
    says: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = Kind.LINES
    alerts: tuple[str, ...] = ()
    width: int = 8
    height: int = 8
    highest: float | None = None
    decimals: int | None = None
    nothing: str = "no data"
    """What is shown where there is no series."""
    words: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Words and colours in the place of numbers."""
    colours: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    """Columns that a table leaves out."""


@dataclass(frozen=True)
class Row:
    """Panels under a common title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a reader chooses from: the values of `label` in the series of `metric`.

    `anything` is what "All" stands for; empty means every value that there is, which leaves out
    what has other values.
    """

    name: str
    metric: str
    label: str
    anything: str = ".*"


@dataclass(frozen=True)
class Board:
    """One dashboard; `name` is that of its file."""

    name: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def uid(self) -> str:
        """The dashboard's address in Grafana, the same everywhere."""
        return f"anabranch-{self.name}"


def one(expr: str, legend: str = "") -> tuple[Query, ...]:
    """A single query."""
    return (Query(expr, legend),)
