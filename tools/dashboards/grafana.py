"""Turns a board into the JSON that Grafana 10 and newer reads, through Grafana's own library.

What is shown is decided in `boards`. Everything that Grafana would invent, such as panel numbers,
is set here, so that the same board always gives the same text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as option
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.dashboards.limits import limit
from tools.dashboards.panels import Board, Kind, Limit, Panel, Row, Variable

TAG = "anabranch"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED = "green", "yellow", "red"

AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel


def text(board: Board) -> str:
    """The file of a board."""
    made = JSONEncoder(sort_keys=True, indent=2).encode(_dashboard(board).build())
    return json.dumps(_numbered(json.loads(made)), indent=2, sort_keys=True) + "\n"


def _dashboard(board: Board) -> build.Dashboard:
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([TAG])
        .time("now-1h", "now")
        .timezone("browser")
        .refresh("30s")
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("Anabranch")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            build.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(model.VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
        .annotation(
            build.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .hide(False)
            .icon_color(RED)
            .expr('ALERTS{alertname=~"Anabranch.+", alertstate="firing", severity="critical"}')
        )
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for row in board.rows:
        made = made.with_row(build.Row(row.title))
        for panel in _in_lines(row):
            made = made.with_panel(_panel(panel))
    return made


def _in_lines(row: Row) -> Sequence[Panel]:
    """The row's panels; a line that they do not fill would move what comes after it."""
    used = 0
    for panel in row.panels:
        used += panel.width
        if used > 24:
            raise ValueError(f"{panel.title} does not fit into its line of {row.title}")
        used %= 24
    return row.panels


def _variable(variable: Variable) -> build.QueryVariable:
    every = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    made = (
        build.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({variable.metric}, {variable.label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(every)
    )
    return made.all_value(variable.anything) if variable.anything else made


def _panel(panel: Panel) -> AnyPanel:
    made: AnyPanel = _BUILDERS[panel.kind](panel)
    made = (
        made.title(panel.title)
        .description(_description(panel))
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .no_value(panel.nothing)
        .span(panel.width)
        .height(panel.height)
    )
    if panel.highest is not None:
        made = made.max(panel.highest)
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    if panel.words:
        options = {
            str(number): model.ValueMappingResult(text=word, color=colour)
            for number, (word, colour) in panel.words.items()
        }
        made = made.mappings([model.ValueMap(options=options)])
    for pattern, colour in panel.colours.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        made = made.override_by_regexp(pattern, [model.DynamicConfigValue("color", fixed)])
    made = made.thresholds(_thresholds(panel))
    newest = panel.kind in (Kind.NUMBER, Kind.BARS, Kind.TABLE)
    for name, query in zip("ABCDEFGH", panel.queries, strict=False):
        asked = prometheus.Dataquery().ref_id(name).datasource(SOURCE).expr(query.expr)
        asked = asked.instant() if newest else asked.range()
        if query.legend:
            asked = asked.legend_format(query.legend)
        if panel.kind is Kind.TABLE:
            asked = asked.format(PromQueryFormat.TABLE)
        made = made.with_target(asked)
    return made


def _description(panel: Panel) -> str:
    if not panel.alerts:
        return panel.says
    names = ", ".join(panel.alerts)
    return f"{panel.says}\n\nAlerts: {names} (docs/runbook.md)."


def _thresholds(panel: Panel) -> build.ThresholdsConfig:
    limits = sorted((limit(alert) for alert in panel.alerts[:2]), key=lambda each: each.value)
    steps = build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE)
    return steps.steps(_steps([each for each in limits if each.below == limits[0].below]))


def _steps(limits: Sequence[Limit]) -> list[model.Threshold]:
    """Colours from the lowest value on; the first begins at minus infinity."""
    if not limits:
        return [model.Threshold(value=None, color=GREEN)]
    if not limits[0].below:
        beyond = [model.Threshold(each.value, _colour(each)) for each in limits]
        return [model.Threshold(value=None, color=GREEN), *beyond]
    colours = [_colour(each) for each in limits] + [GREEN]
    values = [None, *(each.value for each in limits)]
    return [model.Threshold(v, colour) for v, colour in zip(values, colours, strict=True)]


def _colour(limit: Limit) -> str:
    return RED if limit.severity == "critical" else YELLOW


def _lines(panel: Panel) -> timeseries.Panel:
    shown = option.LegendDisplayMode.LIST
    legend = common.VizLegendOptions().show_legend(True).display_mode(shown)
    made = (
        timeseries.Panel()
        .legend(legend.placement(option.LegendPlacement.BOTTOM).calcs([]))
        .tooltip(common.VizTooltipOptions().mode(option.TooltipDisplayMode.MULTI))
        .line_width(1)
        .fill_opacity(60 if panel.kind is Kind.STACK else 10)
        .show_points(option.VisibilityMode.NEVER)
        .span_nulls(False)
    )
    if panel.kind is Kind.STACK:
        made = made.stacking(common.StackingConfig().mode(option.StackingMode.NORMAL).group("A"))
    if panel.alerts:
        dashed = option.GraphTresholdsStyleMode.DASHED
        made = made.thresholds_style(common.GraphThresholdsStyleConfig().mode(dashed))
    return made


def _newest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _number(panel: Panel) -> stat.Panel:
    mode = option.BigValueColorMode
    return (
        stat.Panel()
        .reduce_options(_newest())
        .color_mode(mode.BACKGROUND if panel.alerts or panel.words else mode.VALUE)
        .graph_mode(option.BigValueGraphMode.NONE)
        .text_mode(option.BigValueTextMode.AUTO)
    )


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .reduce_options(_newest())
        .orientation(option.VizOrientation.HORIZONTAL)
        .display_mode(option.BarGaugeDisplayMode.BASIC)
    )


def _table(panel: Panel) -> table.Panel:
    hidden = dict.fromkeys(("Time", "__name__", "job", *panel.hidden), True)
    left_out = model.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
    return table.Panel().with_transformation(left_out)


_BUILDERS: dict[Kind, Any] = {
    Kind.LINES: _lines,
    Kind.STACK: _lines,
    Kind.NUMBER: _number,
    Kind.BARS: _bars,
    Kind.TABLE: _table,
}


def _numbered(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Panels have numbers, which links name."""
    numbers = count(1)
    for panel in dashboard["panels"]:
        panel["id"] = next(numbers)
    return dashboard
