"""What is asked of Prometheus in the place of Grafana, and how its numbers are written."""

from __future__ import annotations

import json
import math

import pytest

from tools.dashboards import units
from tools.dashboards.__main__ import FOLDER
from tools.dashboards.asking import filled, named, panels


class Known:
    """A Prometheus with some label values, and a note of what it was asked for."""

    def __init__(self, **values):
        self.known = values
        self.asked = []

    def values(self, metric, label):
        self.asked.append((metric, label))
        return self.known.get(label, [])


def dashboard(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_variables_stand_at_all():
    source = Known(instance=["10.0.0.1:9101", "10.0.0.2:9101"])
    asked = {panel.title: panel for panel in panels(dashboard("router"), source, "20s")}
    (waiting,) = asked["Waiting in line"].queries
    assert r'instance=~"(10\\.0\\.0\\.1:9101|10\\.0\\.0\\.2:9101)"' in waiting.expr
    assert 'namespace=~".*"' in waiting.expr
    assert "[20s]" in asked["CPU"].queries[0].expr
    assert not any("$" in query.expr for panel in asked.values() for query in panel.queries)


def test_a_variable_is_asked_for_with_those_before_it_filled_in():
    source = Known()
    list(panels(dashboard("router"), source, "20s"))
    series = 'target_info{namespace=~".*", service_name="anabranch-router"}'
    assert (series, "instance") in source.asked


def test_an_unknown_variable_is_no_silent_blank():
    with pytest.raises(KeyError):
        filled("up{job=$job}", {})


def test_a_legend_has_the_series_labels():
    labels = {"__name__": "up", "job": "router", "instance": "r1"}
    assert named("{{job}} at {{ instance }}", labels) == "router at r1"
    assert named("{{nothing}} {{job}}", labels) == "router"
    assert named("", labels) == "instance=r1, job=router"


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "expected"),
    [
        (0.8512, "percentunit", None, "85.1 %"),
        (0.8512, "percentunit", 0, "85 %"),
        (0.0421, "s", None, "42.1 ms"),
        (1.5, "s", None, "1.5 s"),
        (7200, "s", None, "2 h"),
        (864_000, "s", None, "10 d"),
        (1536, "bytes", None, "1.5 KiB"),
        (12, "bytes", None, "12 B"),
        (1234.5, "currencyUSD", None, "$1,234.50"),
        (12_300, "reqps", None, "12.3k req/s"),
        (250.4, "suffix: tok/s", None, "250 tok/s"),
        (3, "short", None, "3"),
        (math.nan, "short", None, "–"),
        (math.inf, "s", None, "–"),
    ],
)
def test_numbers_are_written_with_their_units(value, unit, decimals, expected):
    assert units.text(value, unit, decimals) == expected
