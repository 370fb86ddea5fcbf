"""What the authentication benchmark makes of its looks: targets, ratios and tables."""

from __future__ import annotations

import pytest

from bench.auth import caller, plan, report, targets
from bench.auth.issuance import EXCHANGE, FIRST, HASHING, REPEATED, SIGNING


def costs(**named: float) -> dict[str, dict[str, float]]:
    every = ("bare EdDSA", "new EdDSA", "bare ES256", "new ES256", "cached token",
             "cached API key", "RPC without guard", "RPC with guard")  # fmt: skip
    found = {name: {"cpu_us": 50.0, "wall_us": 50.0} for name in every}
    return found | {
        name.replace("_", " "): {"cpu_us": us, "wall_us": us} for name, us in named.items()
    }


def rates(a_second: float) -> dict[str, dict[str, float]]:
    served = {"a_second": a_second, "cpu_us": 1000.0, "p50_ms": 5.0, "p99_ms": 9.0}
    bare = {"a_second": 20_000.0, "cpu_us": 50.0}
    return {FIRST: served, REPEATED: served, EXCHANGE: served, SIGNING: bare, HASHING: bare}


def found_of(record: dict[str, object], words: str) -> targets.Target:
    return next(target for target in targets.targets(record) if words in target.title)


def test_only_what_was_measured_has_targets():
    assert targets.targets({}) == []
    titles = [target.title for target in targets.targets({plan.ISSUANCE: [rates(400.0)]})]
    assert titles == ["tokens a second of one core, repeated logins"]


def test_a_rate_is_met_from_below_and_a_cost_from_above():
    for rate, met in ((301.0, True), (299.0, False)):
        assert found_of({plan.ISSUANCE: [rates(rate)]}, "tokens a second").met is met
    for cost, met in ((249.0, True), (251.0, False)):
        record = {plan.VERIFICATION: [costs(new_EdDSA=cost)]}
        assert found_of(record, "µs CPU to verify, new EdDSA").met is met


def test_the_median_of_the_rounds_is_held_against_the_bound_and_the_extremes_are_told():
    target = found_of({plan.ISSUANCE: [rates(r) for r in (100.0, 350.0, 400.0)]}, "tokens")
    assert target.met
    assert target.row()[1:] == ["350 (100 to 400)", "≥ 300", "met"]


def test_a_ratio_is_taken_within_a_round():
    looks = [costs(new_EdDSA=100.0, bare_EdDSA=50.0), costs(new_EdDSA=300.0, bare_EdDSA=150.0)]
    rows = targets.verification_rows({plan.VERIFICATION: looks})
    row = next(row for row in rows if row[0] == "new EdDSA")
    assert row[-1] == "2.00 (2.00 to 2.00)"


def test_a_failed_call_during_a_rotation_misses_the_target():
    rotated = {"rotations": 100, "keys_that_signed": 101, "calls": 5000, "seconds": 40.0}
    for failures, met in (({}, True), ({"new token: CREDENTIAL_REJECTED": 1}, False)):
        record = {plan.ROTATION: {**rotated, "failures": failures}}
        assert found_of(record, "failed calls").met is met


@pytest.mark.parametrize(("late", "met"), [(2, True), (3, False)])
def test_a_revocation_is_judged_by_its_99th_percentile(late, met):
    seconds = [0.1] * (200 - late) + [3.0] * late
    record = {plan.REVOCATION: {"SQLite": {"token": {"another replica": seconds}}}}
    assert found_of(record, "another replica").met is met
    _, row = targets.revocation_rows(record)
    assert row[:4] == ["token", "another replica", "SQLite", "200"]
    assert row[4:] == ["0.100", "0.100" if met else "3.000", "3.000"]


def test_a_difference_of_either_sign_is_one():
    found = {"samples": (500, 500), "worst_t": -5.0}
    assert not found_of({plan.TIMING: {"API keys": found}}, "refusals").met
    found["worst_t"] = -4.4
    assert found_of({plan.TIMING: {"API keys": found}}, "refusals").met


def test_a_quota_may_be_exceeded_further_while_redis_is_away():
    scenes = [
        {"scene": "up", "overshoot_percent": 0.9},
        {"scene": "up", "overshoot_percent": 1.1},
        {"scene": "hangs", "overshoot_percent": 9.0},
        {"scene": "never there", "overshoot_percent": 11.0},
    ]
    judged = targets.targets({plan.QUOTAS: {"scenes": scenes}})
    assert [target.met for target in judged] == [True, False, True, False]


def test_a_table_has_a_line_for_each_row():
    text = report.markdown([["a", "b"], ["1", "2"], ["3", "4"]])
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]


def order(**given: object) -> caller.Order:
    plain = {"target": "", "method": "", "classes": (("YQ==", "Yg=="), ("eA==",)), "in_flight": 1}
    return caller.Order(**(plain | given))  # type: ignore[arg-type]


def test_classes_come_equally_often_in_an_order_that_the_seed_shuffles():
    sent = list(order(each=50).sequence())
    kinds = [kind for kind, _ in sent]
    assert [kinds.count(kind) for kind in (0, 1)] == [50, 50]
    assert kinds != sorted(kinds)
    assert sent == list(order(each=50).sequence())
    assert sent != list(order(each=50, seed=2).sequence())


def test_the_requests_of_a_class_come_in_turn():
    sent = list(order(each=4).sequence())
    assert [request for kind, request in sent if kind == 0] == [b"a", b"b", b"a", b"b"]


def test_warm_requests_come_first_and_besides():
    sent = list(order(each=2, warm=3).sequence())
    assert len(sent) == 7
    assert [kind for kind, _ in sent[:3]] == [0, 1, 0]


def test_a_window_has_no_last_request():
    sent = order(seconds=1.0).sequence()
    assert [next(sent)[0] for _ in range(1000)] == [0, 1] * 500
