"""Figures of a benchmark: percentiles, medians with their spread, ratios within a round."""

from __future__ import annotations

import math

import pytest

from bench.dataplane import summary
from bench.dataplane.meter import percentile
from bench.dataplane.plan import FULL, Cell, Form, Path


def sample(path: Path, number: int, **figures: float) -> dict[str, object]:
    every = dict.fromkeys(summary.FIGURES, math.nan) | figures
    cores = dict.fromkeys(("generator", "engine", "proxy", "others"), 0.1)
    return {"cell": CELL.name, "path": path.value, "round": number, "cores": cores, **every} | {
        "marks": ["engine saturated"] if number else []
    }


CELL = Cell(64, 20)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1.0, 2.0, 3.0, 4.0], 50, 2.0), ([1.0, 2.0, 3.0, 4.0], 99, 4.0), ([5.0], 1, 5.0)],
)
def test_a_percentile_is_one_of_the_values(values, share, expected):
    assert percentile(values, share) == expected


def test_nothing_has_no_percentile():
    assert math.isnan(percentile([], 50))


def test_a_figure_is_the_median_with_its_extremes_and_skips_what_is_missing():
    assert summary.figure([3.0, math.nan, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert summary.figure([math.nan]) == {"median": None, "min": None, "max": None}


def test_a_ratio_is_taken_within_a_round():
    samples = [
        sample(Path.ROUTER_SESSION, 0, cpu_us_per_token=10.0),
        sample(Path.ENVOY, 0, cpu_us_per_token=20.0),
        # A round that was disturbed: both cost more.
        sample(Path.ROUTER_SESSION, 1, cpu_us_per_token=30.0),
        sample(Path.ENVOY, 1, cpu_us_per_token=60.0),
    ]
    session = summary.rows([CELL], samples)[0]
    assert session["path"] == "router-session"
    assert session["cpu_us_per_token_to_envoy"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert session["marks"] == ["engine saturated in 1/2"]


def test_what_a_proxy_adds_is_the_difference_to_the_direct_path_of_its_form():
    samples = [
        sample(Path.DIRECT_PLAIN, 0, ttft_p50_ms=1.0),
        sample(Path.ENVOY, 0, ttft_p50_ms=1.4),
        sample(Path.DIRECT_SESSION, 0, ttft_p50_ms=9.0),
    ]
    envoy = next(row for row in summary.rows([CELL], samples) if row["path"] == "envoy")
    assert envoy["added_ttft_p50_ms"]["median"] == pytest.approx(0.4)


def test_missing_figures_are_null_in_json():
    assert summary.plain_json({"a": (math.nan, 1.0)}) == {"a": [None, 1.0]}


def test_the_slope_is_the_cost_of_one_more_message():
    slope, own = summary.slope([(25.0, 3500.0), (50.0, 6000.0), (100.0, 11000.0)])
    assert slope == pytest.approx(100.0)
    assert own == pytest.approx(1000.0)


def test_cells_have_names_of_their_own_and_the_load_that_they_say():
    assert len({cell.name for cell in FULL.cells}) == len(FULL.cells)
    assert Cell(1000, 0).connections(Form.SESSION) == 4
    assert Cell(1000, 0).connections(Form.PLAIN) == 10
    assert Cell(10_000, 0, sessions=100).connections(Form.SESSION) == 100
