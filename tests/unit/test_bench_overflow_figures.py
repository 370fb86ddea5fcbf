"""The overflow benchmark's arithmetic: what is in time, what it cost, what was promised."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from bench.overflow import outcome, report, sample, summary, targets
from bench.overflow import plan as plans
from bench.overflow.outcome import Outcome
from bench.overflow.plan import Objective, Phase, Strategy

OBJECTIVE = Objective(ttft=1.0, tpot=0.06)


def one(number: int = 0, **changes: Any) -> Outcome:
    """An answer of 11 tokens, the first after half a second, then one every 20 ms."""
    usual = Outcome(
        number=number,
        private=False,
        wanted=11,
        at=2.0,
        sent=2.001,
        first=2.5,
        last=2.7,
        tokens=11,
        tier=outcome.LOCAL,
        exact=True,
    )
    return replace(usual, **changes)


REFUSED = one(first=None, last=None, tokens=0, tier="", failure="OVERLOADED", exact=False)
CUT = one(failure="BACKEND_LOST", tier="", exact=False)


# One request


def test_a_first_token_counts_from_when_the_trace_has_the_request():
    assert one().ttft == pytest.approx(0.5)
    assert one(sent=2.4).ttft == pytest.approx(0.5)


def test_the_pace_is_that_of_the_tokens_after_the_first():
    assert one().tpot == pytest.approx(0.02)
    assert math.isnan(one(tokens=1, last=2.5).tpot)


@pytest.mark.parametrize(
    ("request_", "in_time"),
    [
        (one(), True),
        (one(first=3.001), False),
        (one(last=2.5 + 10 * 0.061), False),
        (one(tokens=1, last=2.5), True),
        (REFUSED, False),
        (CUT, False),
    ],
)
def test_in_time_is_whole_and_soon_and_fast(request_, in_time):
    assert request_.attained(OBJECTIVE) is in_time


def test_only_a_refusal_before_any_token_is_an_honest_one():
    assert REFUSED.refused
    assert not CUT.refused
    assert not one(failure="OVERLOADED").refused
    assert not replace(REFUSED, failure="INTERNAL").refused


def test_an_outcome_survives_json():
    assert Outcome.of(one(failed_at=["a"], resumed_at=[3]).to_json()) == one(
        failed_at=["a"], resumed_at=[3]
    )


# Many


def test_figures_count_everything_and_take_delays_from_what_was_served():
    cloud = one(tier=outcome.CLOUD, cost=7, first=2.2, overflow="SATURATED")
    found = outcome.figures([one(), cloud, one(first=3.5, last=3.7), REFUSED, CUT], OBJECTIVE)
    assert (found["requests"], found["served"], found["attained"], found["late"]) == (5, 3, 2, 1)
    assert (found["refused"], found["broken"], found["inexact"]) == (1, 1, 0)
    assert found["slo_attainment"] == pytest.approx(0.4)
    assert found["cloud_share"] == pytest.approx(0.2)
    assert found["cost_microusd"] == 7
    assert found["ttft_p99"] == pytest.approx(1.5)
    assert found["cloud_ttft_p99"] == pytest.approx(0.2)


def test_nothing_has_no_share():
    assert math.isnan(outcome.figures([], OBJECTIVE)["slo_attainment"])


def test_a_wrong_token_is_counted():
    assert outcome.figures([one(), one(exact=False)], OBJECTIVE)["inexact"] == 1


def test_the_timeline_says_for_each_second_who_served_what_came_then():
    line = outcome.timeline(
        [one(at=0.1), one(at=0.9, tier=outcome.CLOUD), replace(REFUSED, at=1.5), one(at=9.0)], 2
    )
    assert line == {"offered": [2, 2], "local": [1, 1], "cloud": [1, 0], "refused": [0, 1]}


def test_tokens_of_an_answer_are_spread_over_its_time():
    half = outcome.local_tokens([one(first=1.0, last=3.0, tokens=10)], 0.0, 2.0)
    assert half == pytest.approx(5.0)
    assert outcome.local_tokens([one(tier=outcome.CLOUD)], 0.0, 9.0) == 0.0
    assert outcome.local_tokens([one(tokens=1, first=1.0, last=1.0)], 0.0, 2.0) == 1.0


def test_use_in_overload_looks_at_phases_above_the_capacity_alone():
    phases = (Phase(0.8, 2.0), Phase(1.5, 2.5))
    # 100 tokens/s from 0 s to 4.5 s; the capacity is 125.
    answers = [one(first=0.0, last=4.5, tokens=450)]
    assert sample.overload_use(answers, phases, 125.0) == pytest.approx(0.8)
    assert math.isnan(sample.overload_use(answers, phases[:1], 125.0))


def test_what_was_hit_by_a_loss_is_known_from_the_receipts():
    hit = one(failed_at=["engine-a"], resumed_at=[4])
    assert outcome.touched([one(), hit, one(failed_at=["engine-b"])], "engine-a") == [hit]


# Marks


def cores(**used: float) -> dict[str, float]:
    return {"router": 0.1, "generator": 0.1, "machine": 0.5, "others": 0.1} | used


def test_a_process_is_saturated_when_it_takes_a_core_over_two_seconds():
    once = [cores(router=1.0), cores(router=0.2), cores()]
    assert sample.marks(once, [], 0.001, 2) == []
    twice = [cores(), cores(router=0.95), cores(router=0.92)]
    assert sample.marks(twice, [], 0.001, 2) == ["router saturated"]
    assert sample.is_invalid(["router saturated"])


def test_a_process_that_has_no_core_for_long_makes_a_look_invalid():
    waits = [{"router": 0.1, "engine-1": 0.0}, {"router": 0.1, "engine-1": 0.6}]
    assert sample.longest_waits(waits) == {"router": 0.1, "engine-1": 0.6}
    assert sample.marks([cores()] * 2, waits, 0.001, 2) == ["engine-1 starved"]
    assert sample.is_invalid(["engine-1 starved"])


def test_other_programs_make_a_look_doubtful_and_a_late_generator_makes_it_invalid():
    noisy = sample.marks([cores(others=1.5, machine=2.0)] * 3, [], 0.001, 2)
    assert noisy == ["all cores busy", "other programs"]
    assert not sample.is_invalid(noisy)
    late = sample.marks([cores()] * 3, [], 0.06, 2)
    assert late == ["generator late"]
    assert sample.is_invalid(late)


# Rows and targets


def look(strategy: Strategy, number: int, outcomes: list[Outcome], **more: Any) -> dict[str, Any]:
    phases = (Phase(0.8, 2.0), Phase(1.5, 2.0))
    found = sample.summed_up(outcomes, phases, 100.0, [cores()] * 4, [], machine=2)
    seen = {"provider_seen": 0, "provider_private": 0}
    return found | seen | {"strategy": strategy.value, "round": number} | more


def spilled(cost: int, overflow: str = "SATURATED") -> Outcome:
    return one(tier=outcome.CLOUD, cost=cost, overflow=overflow)


def run() -> dict[str, Any]:
    """Two rounds of three strategies, and a killed engine."""
    private = one(private=True)
    samples = [
        look(Strategy.ROUTER, 0, [one(), spilled(60), private]),
        look(Strategy.CAP, 0, [one(), spilled(100, ""), private]),
        look(Strategy.CLOUD, 0, [spilled(100, ""), spilled(100, ""), private]),
        look(Strategy.ROUTER, 1, [one(), spilled(80), replace(REFUSED, private=True)]),
        look(Strategy.CAP, 1, [REFUSED, spilled(100, ""), private]),
        look(Strategy.CLOUD, 1, [spilled(100, ""), spilled(100, ""), private]),
    ]
    killed = {"engine": "engine-1", "hit": 3, "mid_stream": 2, "exact": 3, "went_to_cloud": 0}
    kills = [look(Strategy.ROUTER, 0, [one()], **killed, longest_pause=0.3)]
    circumstances = {
        "at": "2026-01-01T00:00:00+00:00",
        "machine": {
            "cpu": "a cpu",
            "cores": 2,
            "memory_gib": 1.0,
            "kernel": "6",
            "load_average_before": [0.1],
        },
        "versions": {"python": "3.11", "grpcio": "1", "uvloop": "1"},
        "commit": "0123456789abcdef",
        "changed_files": 0,
    }
    capacity = {
        "tokens_per_second": 100.0,
        "modelled_tokens_per_second": 101.0,
        "requests_per_second": 2.0,
        "mean_prompt": 100.0,
        "mean_output": 50.0,
    }
    return {
        "format": 1,
        "circumstances": circumstances,
        "plan": plans.FULL.to_json(),
        "capacity": capacity,
        "samples": samples,
        "kills": kills,
        "provider": {"seen": 9, "private": 0},
        "rows": summary.rows(samples),
    }


def verdict(record: dict[str, Any], what: str) -> Any:
    (found,) = [v for v in targets.verdicts(record) if v.what == what]
    return found


def test_a_cost_ratio_is_taken_within_a_round():
    router = summary.rows(run()["samples"])[0]
    assert router["strategy"] == "router"
    assert router["cost_to_cap"] == {"median": 0.7, "min": 0.6, "max": 0.8}
    assert router["cost_to_cloud"] == {"median": 0.35, "min": 0.3, "max": 0.4}
    assert router["cost_per_1000"]["median"] == pytest.approx(35_000)


def test_counts_are_added_up_over_the_rounds():
    router = summary.rows(run()["samples"])[0]
    assert router["private"]["refused"] == 1
    assert router["allowed"]["requests"] == 4
    assert router["reasons"] == {"SATURATED": 2}
    assert router["failures"] == {"OVERLOADED": 1}


def test_an_invalid_look_counts_but_says_nothing_of_delays_and_costs():
    record = run()
    record["samples"][1]["marks"] = ["generator late"]
    router, cap, _ = summary.rows(record["samples"])
    assert router["cost_to_cap"] == {"median": 0.8, "min": 0.8, "max": 0.8}
    assert cap["allowed"]["requests"] == 4
    assert cap["allowed"]["slo_attainment"]["max"] == 0.5
    for sample_ in record["samples"]:
        sample_["marks"] = ["engine-1 saturated"]
    assert verdict(record, "cloud cost, × static cap").met is None
    assert verdict(record, "… within the objective").met is None
    assert verdict(record, "private requests at the provider").met is True


def test_a_run_that_keeps_every_promise_has_met_every_target():
    found = targets.verdicts(run())
    assert [v.met for v in found if v.limit is not None] == [True] * 9
    assert verdict(run(), "cloud cost, × static cap").found["median"] == pytest.approx(0.7)
    assert verdict(run(), "… attainment beyond the static cap's").found["median"] == 25.0


def test_a_private_request_at_the_provider_breaks_the_promise():
    record = run() | {"provider": {"seen": 9, "private": 1}}
    assert verdict(record, "private requests at the provider").met is False


@pytest.mark.parametrize("bad", [CUT, REFUSED, replace(CUT, private=True)])
def test_a_request_that_does_not_end_whole_after_a_kill_breaks_the_promise(bad):
    record = run()
    more = {key: record["kills"][0][key] for key in ("engine", "mid_stream", "longest_pause")}
    record["kills"] = [look(Strategy.ROUTER, 0, [one(), bad], **more)]
    assert verdict(record, "requests that did not end whole").met is False


def test_an_overflow_without_a_reason_breaks_the_promise():
    record = run()
    record["samples"].append(look(Strategy.ROUTER, 2, [spilled(1, "")]))
    what = "answers from the cloud whose receipt does not say why"
    assert verdict(record, what).met is False


def test_what_was_not_tried_is_not_met():
    record = run() | {"samples": [], "kills": [], "provider": None}
    assert {v.met for v in targets.verdicts(record)} == {None}
    assert targets.headline(record) == ""


def test_the_page_labels_what_is_simulated_and_names_every_strategy():
    text = report.page(run(), "overflow.svg")
    for words in ("sim engine", "provider simulator", "invented", "`0123456789ab`"):
        assert words in " ".join(text.split())
    for strategy in (Strategy.ROUTER, Strategy.CAP, Strategy.CLOUD):
        assert f"| {strategy.label} |" in text
    assert "invalid" not in text.partition("**What is simulated")[0]


def test_the_page_says_which_looks_are_invalid():
    record = run()
    record["samples"][0]["marks"] = ["router saturated"]
    assert "**1 of 7 looks are invalid**" in report.page(record, "")


def test_the_headline_says_what_was_served_what_it_cost_and_what_left():
    said = targets.headline(run())
    assert "between 0.8 and 1.5 × the local capacity" in said
    assert "0.70 × what a static cap spends" in said
    assert "of 6 private requests 0 left" in said
