"""What a run is held to: the plan's looks, the marks of a doubtful look, targets and headline."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench.dataplane import report, targets
from bench.dataplane.generator import Order
from bench.dataplane.measure import derived
from bench.dataplane.plan import ALONE, FULL, LONGER, SHORT, SPREAD, Cell, Form, Path, worth
from bench.dataplane.summary import FIGURES

CORES = dict.fromkeys(("generator", "engine", "proxy", "others"), 0.1)


def sample(cell: Cell, path: Path, number: int = 0, **figures: float) -> dict[str, object]:
    every = dict.fromkeys(FIGURES, None) | figures
    where = {"cell": cell.name, "path": path.value, "round": number}
    return where | {"cores": CORES, "marks": [], **every}


def record(*samples: dict[str, object], **more: object) -> dict[str, object]:
    machine = {"cores": 2, "cpu": "a machine"}
    return {"samples": list(samples), "circumstances": {"machine": machine}} | more


def verdict(found: list[targets.Verdict], what: str, where: str) -> targets.Verdict:
    return next(v for v in found if v.what == what and v.where == where)


def costs(cell: Cell, **by_path: float) -> list[dict[str, object]]:
    return [
        sample(cell, Path(name.replace("_", "-")), cpu_us_per_token=value)
        for name, value in by_path.items()
    ]


def test_a_ratio_is_met_by_its_median_and_missed_beyond_its_limit():
    found = targets.verdicts(
        record(
            *costs(Cell(64, 20), router_session=6.0, envoy=10.0, litellm=100.0, smg_grpc=10.0),
        )
    )
    at = Cell(64, 20).label
    assert verdict(found, "CPU a token, × Envoy, StreamGenerate", at).met is True
    assert verdict(found, "CPU a token, × SMG, gRPC workers", at).met is False
    assert verdict(found, "CPU a token, × LiteLLM, HTTP", at).met is False


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert {v.met for v in targets.verdicts(record())} == {None}


def test_requests_have_a_floor_and_the_first_token_a_ceiling():
    found = targets.verdicts(
        record(
            sample(SHORT, Path.ROUTER_SESSION, requests_per_second=12_500.0),
            sample(ALONE, Path.ROUTER_SESSION, ttft_p50_ms=0.9, ttft_p99_ms=4.0),
            sample(ALONE, Path.DIRECT_SESSION, ttft_p50_ms=0.4, ttft_p99_ms=1.0),
        )
    )
    assert verdict(found, "requests/s", SHORT.label).met is True
    assert verdict(found, "added TTFT p50", ALONE.label).found["median"] == pytest.approx(0.5)
    assert verdict(found, "added TTFT p50", ALONE.label).met is True
    assert verdict(found, "added TTFT p99", ALONE.label).met is False


def test_the_headline_says_only_what_was_measured():
    assert targets.headline(record()) == ""
    sentence = targets.headline(
        record(*costs(Cell(64, 20), router_session=6.0, envoy=10.0, litellm=300.0))
    )
    assert "0.60× at 64" in sentence
    assert "0.02× of LiteLLM's" in sentence
    assert "SMG" not in sentence


def test_the_cold_message_and_many_streams_are_told():
    three = {"median": 300.0, "min": 290.0, "max": 310.0}
    rows = [
        {
            "streams": streams,
            "cpu_us_per_token": {"median": cost, "min": cost, "max": cost},
            "rss_kib_per_stream": 9.0,
        }
        for streams, cost in ((100, 4.0), (10_000, 2.0))
    ]
    cold = {"us_per_message": {"router-session": three, "envoy": three}}
    found = targets.verdicts(record(cold=cold, many={"rows": rows}))
    assert verdict(found, "RSS a stream", "10,000 streams").found["median"] == 9.0
    assert verdict(found, "CPU a token, × 100 streams", "10,000 streams").met is True
    assert verdict(found, "… × Envoy, StreamGenerate", "one answer").found["median"] == 1.0


def test_the_page_has_the_table_of_targets():
    lines = list(report.targets_table(record(*costs(Cell(64, 20), router_session=6.0, envoy=10.0))))
    row = next(line for line in lines if "× Envoy, StreamGenerate | 64 streams" in line)
    assert row.endswith("| 0.600 × | ≤ 0.7 × | yes |")


def order(**given: object) -> Order:
    plain = {"target": "", "form": "session", "model": "", "streams": 10, "connections": 1}
    times = {"tokens": 8, "warm": 0.0, "window": 1.0, "authorization": ""}
    return Order(**(plain | times | {"proxy": (1,), "engine": (2,)} | given))  # type: ignore[arg-type]


def looked(**cpu: float) -> dict[str, object]:
    used = dict.fromkeys(("generator", "engine", "proxy", "others", "machine"), 0.1) | cpu
    counted = {"seconds": 1.0, "tokens": 500, "requests": 5, "tokens_per_second": 500.0}
    return counted | {"cpu_seconds": used, "rss_peak": 2**20, "errors": {}}


@pytest.mark.parametrize(
    ("cpu", "marks"),
    [
        ({}, []),
        ({"generator": 0.95}, ["generator saturated"]),
        ({"engine": 0.95}, ["engine saturated"]),
        ({"proxy": 0.99}, []),
        ({"others": 0.5}, ["machine busy"]),
    ],
)
def test_a_look_is_marked_where_something_else_than_the_proxy_was_the_limit(cpu, marks):
    assert derived(looked(**cpu), order())["marks"] == marks


def test_a_paced_look_is_marked_when_tokens_lag_behind_the_engine():
    assert derived(looked(), order(pace_ms=20))["marks"] == []
    late = looked() | {"tokens_per_second": 400.0}
    assert derived(late, order(pace_ms=20))["marks"] == ["behind the pace"]
    assert derived(late, order(pace_ms=0))["marks"] == []


def test_a_direct_path_has_a_load_but_no_cost():
    assert math.isnan(derived(looked(), order(proxy=()))["cpu_us_per_token"])


def test_a_whole_run_takes_a_path_only_where_it_says_something():
    assert not worth(Cell(256, 20), Path.LITELLM)
    assert worth(Cell(64, 20), Path.LITELLM)
    assert not worth(Cell(1000, 0), Path.SMG)
    assert not worth(SPREAD, Path.DIRECT_HTTP)
    for cell in FULL.cells:
        assert {Path.DIRECT_SESSION, Path.ROUTER_SESSION, Path.ENVOY} <= set(FULL.takes(cell))
        for path in FULL.takes(cell):
            assert path.direct in FULL.takes(cell)


def test_who_names_the_streams_gets_every_path():
    assert replace(FULL, all_of_them=True).takes(Cell(1000, 20)) == tuple(Path)


def test_a_plan_knows_how_long_it_takes():
    one = replace(FULL, cells=(Cell(64, 20),), paths=(Path.ENVOY,), rounds=3)
    assert one.looks == 3
    large = replace(one, cells=(Cell(1000, 20),))
    assert large.seconds - one.seconds == pytest.approx(3 * one.warm * (LONGER - 1))
    # Half an hour is the most that a reader is asked for.
    assert FULL.seconds < 30 * 60


def test_a_proxy_that_takes_seconds_for_an_answer_is_looked_at_for_longer():
    assert FULL.window_of(Path.LITELLM) > 2 * FULL.window_of(Path.ENVOY)
    cell = Cell(64, 20)
    assert FULL.warm_of(cell, Path.LITELLM) > FULL.warm_of(cell, Path.ENVOY)


def test_http_has_a_connection_for_each_stream():
    assert Cell(64, 0).connections(Form.HTTP) == 64
