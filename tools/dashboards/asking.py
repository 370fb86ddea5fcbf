"""Asks a Prometheus what the panels of a dashboard show, as Grafana would.

It reads the dashboards' JSON, not the boards: what is asked is what was shipped. Variables stand
at "All". Nothing is drawn here.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_VALUES_OF = re.compile(r"label_values\((?P<metric>.+), *(?P<label>\w+)\)\Z", re.DOTALL)
_TIMEOUT_S = 30.0


class QueryFailed(Exception):
    """Prometheus refused or failed a query; the text has the query and the reason."""


@dataclass(frozen=True)
class Series:
    """One line: labels, and (Unix seconds, value) in the order of time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Prometheus:
    """The HTTP API of one Prometheus, at host:port. Its methods block; they raise QueryFailed."""

    address: str

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer."""
        asked = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(asked, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise QueryFailed(f"{parameters.get('query', path)}: {said}") from error
        except OSError as error:
            raise QueryFailed(f"{self.address} does not answer: {error}") from error

    def values(self, metric: str, label: str) -> list[str]:
        """The values that a label has in the series of a metric, empty ones left out."""
        found = {row.get(label, "") for row in self.get("series", **{"match[]": metric})}
        return sorted(found - {""})

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """What an expression was, every `step` seconds from `start` to `end`."""
        data = self.get("query_range", query=expr, start=start, end=end, step=step)
        return [
            Series(row["metric"], tuple((float(at), float(value)) for at, value in row["values"]))
            for row in data["result"]
        ]


@dataclass(frozen=True)
class Asked:
    """One query of a panel, ready to be sent."""

    expr: str
    legend: str


@dataclass(frozen=True)
class AskedPanel:
    """A panel with its queries; `shape` is the panel as Grafana has it."""

    title: str
    row: str
    queries: tuple[Asked, ...]
    shape: Mapping[str, Any] = field(repr=False)


def panels(dashboard: Mapping[str, Any], source: Prometheus, window: str) -> Iterator[AskedPanel]:
    """A dashboard's panels, rows left out; `window` takes the place of $__rate_interval."""
    known = {"__rate_interval": window}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            known[variable["name"]] = _everything(variable, source, known)
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        queries = (
            Asked(filled(target["expr"], known), target.get("legendFormat", ""))
            for target in panel["targets"]
        )
        yield AskedPanel(panel["title"], row, tuple(queries), panel)


def filled(text: str, known: Mapping[str, str]) -> str:
    """A text with the values of its variables. Raises KeyError for one that is not known."""
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], text)


def _everything(variable: Mapping[str, Any], source: Prometheus, known: Mapping[str, str]) -> str:
    """What Grafana puts in for "All"."""
    asked = _VALUES_OF.match(variable["query"])
    if asked is None:
        raise ValueError(f"not a query of label values: {variable['query']}")
    values = source.values(filled(asked["metric"], known), asked["label"])
    if "allValue" in variable:
        return str(variable["allValue"])
    # Twice escaped: once for the regular expression, once for the string in PromQL.
    escaped = (re.escape(value).replace("\\", "\\\\") for value in values)
    return f"({'|'.join(escaped)})"


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with a series' labels in it; without a legend, the labels themselves."""
    if not legend:
        shown = (f"{k}={v}" for k, v in sorted(labels.items()) if k != "__name__")
        return ", ".join(shown)
    return re.sub(r"{{ *(\w+) *}}", lambda found: labels.get(found[1], ""), legend).strip()
