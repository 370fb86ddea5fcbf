"""Grafana's files: current, complete, and red where alerts fire."""

from __future__ import annotations

import json
import re

import pytest

from tools.dashboards.__main__ import FOLDER, stale
from tools.dashboards.boards import BOARDS
from tools.dashboards.limits import alerts, limit
from tools.dashboards.panels import Limit

FILES = sorted(FOLDER.glob("*.json"))
DASHBOARDS = [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
each = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=[file.stem for file in FILES])


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_boards_make():
    assert not stale(), "run `make dashboards`"
    assert len(FILES) == len(BOARDS)


def test_a_changed_a_missing_and_a_foreign_file_are_noticed(tmp_path):
    first, second, *others = FILES
    for file in others:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / first.name).write_text("{}", encoding="utf-8")
    (tmp_path / "foreign.json").write_text("{}", encoding="utf-8")
    assert {path.name for path in stale(tmp_path)} == {first.name, second.name, "foreign.json"}


@each
def test_a_panel_says_what_to_do_and_in_which_unit(dashboard):
    for panel in panels(dashboard):
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


@each
def test_every_query_goes_to_the_chosen_prometheus(dashboard):
    assert dashboard["templating"]["list"][0]["current"]["value"] == "prometheus"
    asked = {
        source["datasource"]["uid"]
        for panel in panels(dashboard)
        for source in (panel, *panel["targets"])
    }
    assert asked == {"${datasource}"}


@each
def test_queries_use_variables_that_the_dashboard_has(dashboard):
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {
        name
        for panel in panels(dashboard)
        for target in panel["targets"]
        for name in re.findall(r"\$(\w+)", target["expr"])
    }
    assert used - {"__rate_interval"} <= known
    assert known - {"datasource"} <= used


@each
def test_panels_lie_beside_each_other(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place.get("x", 0), place.get("y", 0)
        cells = {(a, b) for a in range(x, x + place["w"]) for b in range(y, y + place["h"])}
        assert x + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_dashboards_link_to_each_other_by_their_tag():
    for dashboard in DASHBOARDS:
        assert "anabranch" in dashboard["tags"]
        assert dashboard["links"][0]["tags"] == ["anabranch"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


def test_a_panel_turns_yellow_where_its_alert_fires():
    (router,) = (d for d in DASHBOARDS if d["uid"] == "anabranch-router")
    (cpu,) = (panel for panel in panels(router) if panel["title"] == "CPU")
    steps = cpu["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["value"], step["color"]) for step in steps] == [(None, "green"), (0.85, "yellow")]


def test_a_panel_is_red_below_the_threshold_of_an_alert_that_fires_below():
    (cluster,) = (d for d in DASHBOARDS if d["uid"] == "anabranch-cluster")
    (done,) = (panel for panel in panels(cluster) if panel["title"] == "Answered to the end")
    steps = done["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["value"], step["color"]) for step in steps] == [(None, "red"), (0.85, "green")]


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        ("AnabranchCpuHigh", Limit(0.85)),
        ("AnabranchCompletionRateLow", Limit(0.85, below=True, severity="critical")),
        ("AnabranchTtftSloBurnFast", Limit(14.4 * 0.01, severity="critical")),
        ("AnabranchNoBackends", Limit(0.5, below=True, severity="critical")),
        ("AnabranchPolicyRejected", Limit(0.5)),
    ],
)
def test_thresholds_are_read_out_of_the_rules(alert, expected):
    assert limit(alert) == expected


def test_an_alert_that_is_not_there_has_no_threshold():
    with pytest.raises(LookupError):
        limit("AnabranchNever")


def test_every_alert_that_a_panel_names_is_there():
    known = {rule["alert"] for rule in alerts()}
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            assert set(re.findall(r"Anabranch\w+", panel["description"])) <= known
