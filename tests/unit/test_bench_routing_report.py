"""The routing laboratory's figures: ratios within a seed, targets, the page, and a tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.routing import __main__ as command
from bench.routing import decision_time, report, run, targets
from bench.routing.scenarios import BY_NAME, Entry

CIRCUMSTANCES = {
    "at": "2026-01-01",
    "commit": "0123456789abcdef",
    "changed_files": 0,
    "machine": {"cores": 2, "cpu": "a machine", "load_average_before": (0.5, 0.5, 0.5)},
}


def sample(
    scenario: str, policy: str, seed: int = 1, routers: int = 1, **figures: float
) -> dict[str, object]:
    nothing = dict.fromkeys(run.FIGURES, None) | {"cdf": [(10.0, 50), (15.0, 95), (20.0, 99)]}
    where = {"scenario": scenario, "policy": policy, "seed": seed, "routers": routers}
    return nothing | {"requests": 100} | where | figures


def record(*samples: dict[str, object], **more: object) -> dict[str, object]:
    rows = run.rows(BY_NAME.values(), samples)
    return {"samples": list(samples), "rows": rows, "circumstances": CIRCUMSTANCES} | more


def verdict(found: list[targets.Verdict], what: str, where: str) -> targets.Verdict:
    return next(v for v in found if v.what.startswith(what) and v.where == where)


def caps(scenario: str, **by_cap: tuple[float, float]) -> list[dict[str, object]]:
    return [
        sample(scenario, name.replace("_", "-"), slo=slo, cloud_cost=cost)
        for name, (slo, cost) in by_cap.items()
    ]


def test_a_ratio_is_taken_within_a_seed_and_its_median_decides():
    made = [
        *(sample("alike", "lor", seed, ttft_p99_ms=p99) for seed, p99 in ((1, 100), (2, 400))),
        *(sample("alike", "core", seed, ttft_p99_ms=p99) for seed, p99 in ((1, 50), (2, 100))),
    ]
    found = verdict(targets.verdicts(record(*made)), "p99 TTFT, × LOR", BY_NAME["alike"].title)
    # Medians first and then the ratio would give 0.3.
    assert found.found == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert found.met is True


def test_routers_are_held_against_as_many_routers():
    made = [
        sample("alike", "lor", ttft_p99_ms=100),
        sample("alike", "core", ttft_p99_ms=50),
        sample("alike", "lor", routers=4, ttft_p99_ms=200),
        sample("alike", "c3", routers=4, ttft_p99_ms=150),
        sample("alike", "core", routers=4, ttft_p99_ms=170),
    ]
    found = targets.verdicts(record(*made))
    four = targets.where("alike", 4)
    assert verdict(found, "p99 TTFT, × LOR", four).found["median"] == 0.85
    assert verdict(found, "p99 TTFT, × LOR", four).met is False
    assert verdict(found, "p99 TTFT, × C3", four).met is False


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert {v.met for v in targets.verdicts(record())} == {None}
    assert "## Targets" not in report.page(record(), ())


def test_overflow_is_held_against_the_cheapest_cap_that_is_good_enough():
    made = [
        *caps("overflow", cap_50=(1.0, 0.4), cap_100=(0.997, 0.3), cap_215=(0.95, 0.1)),
        sample("overflow", "core", slo=0.9965, cloud_cost=0.24),
    ]
    found = targets.verdicts(record(*made))
    where = BY_NAME["overflow"].title
    assert targets.best_cap(made, "overflow") == "cap-100"
    assert verdict(found, "objective attained", where).met is True
    assert verdict(found, "cloud cost", where).found["median"] == pytest.approx(0.8)
    assert verdict(found, "cloud cost", where).met is False


def test_where_no_cap_is_good_enough_the_best_one_counts():
    made = caps("overflow", cap_50=(0.99, 0.4), cap_100=(0.97, 0.3))
    assert targets.best_cap(made, "overflow") == "cap-50"


def test_a_refused_request_is_a_lost_one():
    made = [sample("kill", "core", lost=0, refused=1)]
    found = verdict(targets.verdicts(record(*made)), "requests lost", BY_NAME["kill"].title)
    assert found.found["median"] == 1
    assert found.met is False


def test_the_page_shows_only_what_was_played_and_a_missed_target_in_bold():
    made = [
        sample("alike", "lor", ttft_p99_ms=100.0),
        sample("alike", "core", ttft_p99_ms=90.0),
    ]
    page = report.page(record(*made), ["routing-ttft.svg"])
    assert "| 0.90 × | ≤ 0.6 × | **no** |" in page
    assert "| least outstanding requests (LOR) | – | 15 | 100 | 1.00 |" in page
    assert "(routing-ttft.svg)" in page
    assert f"## {BY_NAME['kill'].title}" not in page


def test_a_spread_over_the_seeds_is_shown_with_its_ends():
    made = [sample("alike", "lor", seed, ttft_p99_ms=100.0 + seed) for seed in (1, 2, 3)]
    assert "| 102 (101–103) |" in report.page(record(*made), ())


def test_every_decision_that_is_timed_has_its_row():
    rows = decision_time.measure(20, rounds=2)
    assert [(row["backends"], row["prefix_blocks"]) for row in rows] == [
        (16, 0),
        (16, decision_time.BLOCKS),
        (128, 0),
        (128, decision_time.BLOCKS),
    ]
    for row in rows:
        assert len(row["choose_p50_us"]) == 2
        pairs = zip(row["choose_p50_us"], row["with_snapshot_p99_us"], strict=True)
        assert all(0 < median <= most for median, most in pairs)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One scenario of some hundred requests, and few decisions to time."""
    little = replace(
        BY_NAME["alike"], seconds=3.0, warm=1.0, entries=(Entry("lor"), Entry("c3"), Entry("core"))
    )
    monkeypatch.setattr(command, "SCENARIOS", (little,))
    monkeypatch.setattr(command, "QUICK_DECISIONS", 20)
    monkeypatch.setitem(BY_NAME, "alike", little)


@pytest.mark.usefixtures("tiny")
def test_a_run_writes_a_page_and_its_report_writes_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "--scenario", "alike", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert command.main(asked) == 0
    shown = capsys.readouterr()
    assert "p99 TTFT, × LOR" in shown.out
    assert "[  3/3" in shown.err
    made = json.loads((tmp_path / "routing.json").read_text(encoding="utf-8"))
    assert [s["policy"] for s in made["samples"]] == ["lor", "c3", "core"]
    assert all(s["requests"] > 200 for s in made["samples"])
    page = (tmp_path / "routing.md").read_text(encoding="utf-8")
    assert "**services/router/core**" in page
    again = tmp_path / "again"
    source = str(tmp_path / "routing.json")
    assert command.main(["report", "--from", source, "--out", str(again)]) == 0
    assert (again / "routing.md").read_text(encoding="utf-8") == page


def test_a_report_of_nothing_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["report", "--from", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
