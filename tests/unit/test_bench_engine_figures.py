"""The engine benchmark's arithmetic: what a look shows, how paths compare, what is promised."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from bench.engine import arguments, figures, prompts, report, summary, targets
from bench.engine.flight import Answered, Flight, Order, answered
from bench.engine.plan import Model, Objective, Path, Plan, waves

OBJECTIVE = Objective(ttft=0.5, tpot=0.03)
PLAN = Plan(
    model=Model("models/small", "bfloat16"),
    device="gpu",
    paths=tuple(Path),
    streams=(1, 512),
    rounds=2,
    prompt_tokens=64,
    output_tokens=11,
    objective=OBJECTIVE,
    clients=8,
    session_clients=2,
    alternate=True,
)


def flight(first: float = 0.1, pace: float = 0.02, **changes: Any) -> Flight:
    """An answer of 11 tokens, sent at 10 s."""
    known = {"sent": 10.0, "first": 10.0 + first, "last": 10.0 + first + 10 * pace, "tokens": 11}
    return Flight(**(known | changes))


def sample(*flights: Flight) -> figures.Sample:
    return figures.sample([Answered(list(flights), 0.5, 1.0)], OBJECTIVE, 11)


def test_a_look_counts_from_the_first_request_to_the_last_token():
    found = sample(flight(), flight(sent=10.5, first=10.7, last=12.0))
    assert found["seconds"] == pytest.approx(2.0)
    assert found["tokens_per_second"] == pytest.approx(22 / 2.0)
    assert found["generator_cores"] == pytest.approx(0.5)


def test_delays_are_those_of_each_answer():
    found = sample(*(flight(first=n / 100) for n in range(1, 101)))
    assert found["ttft_p50_ms"] == pytest.approx(500.0)
    assert found["ttft_p99_ms"] == pytest.approx(990.0)
    assert found["tpot_p50_ms"] == pytest.approx(20.0)


def test_goodput_leaves_out_who_waited_or_was_slow():
    found = sample(flight(), flight(first=0.6), flight(pace=0.031), flight(pace=0.029))
    assert found["within"] == pytest.approx(0.5)
    assert found["goodput"] == pytest.approx(2 / found["seconds"])


def test_an_answer_that_is_short_or_failed_is_no_throughput():
    broken = [flight(tokens=10), flight(error="gone", tokens=11, last=99.0)]
    found = sample(flight(), *broken)
    assert (found["requests"], found["whole"], found["tokens"]) == (3, 1, 11)
    assert found["failures"] == ["gone"]
    cost = figures.costs(found, 1.0, 2.0, 1.0, callers=True, cores=2)
    assert cost["marks"] == ["answers missing"]


def test_an_offline_answer_has_no_delays_and_no_goodput():
    found = sample(flight(first=-10.0, last=12.0))
    assert found["tokens_per_second"] == pytest.approx(5.5)
    assert math.isnan(found["ttft_p50_ms"])
    assert math.isnan(found["goodput"])


@pytest.mark.parametrize(
    ("generator", "busy", "callers", "marks"),
    [
        (0.5, 2.0, True, []),
        (0.95, 2.0, True, ["generator saturated"]),
        # In process, the caller is the path itself.
        (0.95, 2.0, False, []),
        (0.5, 3.0, True, ["machine busy"]),
    ],
)
def test_a_doubtful_look_is_marked(generator, busy, callers, marks):
    found = figures.sample([Answered([flight()], generator, 1.0)], OBJECTIVE, 11)
    found["generator_seconds"] = 0.2
    cost = figures.costs(found, 1.8, 2.0, busy, callers=callers, cores=2)
    assert cost["marks"] == marks
    assert cost["cpu_us_per_token"] == pytest.approx(1.8e6 / 11)


def test_no_look_of_nothing_divides_by_zero():
    found = sample()
    assert math.isnan(found["tokens_per_second"])
    assert figures.costs(found, 0.0, 0.0, 0.0, callers=True, cores=2)["marks"] == []


def test_prompts_are_the_same_on_every_path_and_share_no_prefix_between_rounds():
    one = prompts.prompts("0-512", 8, 64, 49152)
    assert one == prompts.prompts("0-512", 8, 64, 49152)
    other = prompts.prompts("1-512", 8, 64, 49152)
    starts = [tuple(prompt[:2]) for prompt in one + other]
    assert len(set(starts)) == len(starts)
    assert all(0 <= token < 49152 for prompt in one for token in prompt)
    assert all(token < 50 for prompt in prompts.prompts("x", 2, 64, 50) for token in prompt)


def test_few_streams_ask_several_times():
    assert [waves(streams) for streams in (1, 2, 3, 4, 512)] == [4, 2, 2, 1, 1]


def test_orders_and_answers_survive_the_way_between_processes():
    order = Order("session", "m", 5, [[[1, 2]]], "host:1", "secret", 3.0)
    found = json.loads(json.dumps(order.to_json()))
    assert found.pop("kind") == "load"
    assert Order(**found) == order
    told = Answered([flight(error="late")], 0.25, 2.0)
    assert answered(json.loads(json.dumps(told.to_json()))) == told


def test_a_plan_survives_its_record():
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def look(path: Path, number: int, tokens_per_second: float, **changes: Any) -> dict[str, Any]:
    found = sample(flight())
    found |= figures.costs(found, 1.0, 1.0, 1.0, callers=True, cores=2)
    where = {"path": path.value, "streams": 512, "round": number}
    return found | where | {"tokens_per_second": tokens_per_second} | changes


def record(*samples: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "plan": PLAN.to_json(),
        "samples": list(samples),
        "cancels": [{"path": "session", "round": 0, "slot_ms": 40.0, "kv_ms": 60.0}],
        "failures": {},
        "cut": False,
        "versions": {"vllm": "0.25.1"},
        "circumstances": {
            "at": "now",
            "commit": "0" * 40,
            "gpu": {"name": "H200", "driver": "1", "memory": "1"},
            "machine": {
                "cpu": "c",
                "cores": 2,
                "memory_gib": 1,
                "kernel": "k",
                "load_average_before": [0.0],
            },
        },
        **changes,
    }


def of(verdicts: Any, path: Path, over: Path) -> Any:
    what = f"{path.label}: tokens/s, × {over.label}"
    (one,) = [verdict for verdict in verdicts if verdict.what == what]
    return one


def test_a_ratio_is_taken_within_a_round():
    # Twice as fast in each round, though the machine was slower in the second.
    samples = [
        look(Path.SESSION, 0, 200.0),
        look(Path.SERVE, 0, 100.0),
        look(Path.SESSION, 1, 20.0),
        look(Path.SERVE, 1, 10.0),
    ]
    found = summary.ratio(samples, Path.SESSION, Path.SERVE, 512)
    assert found == {"median": 2.0, "min": 2.0, "max": 2.0}


def test_targets_say_met_missed_or_not_measured():
    samples = [look(Path.SESSION, 0, 89.0), look(Path.OFFLINE, 0, 100.0), look(Path.SERVE, 0, 40.0)]
    verdicts = targets.verdicts(record(*samples))
    assert of(verdicts, Path.SESSION, Path.OFFLINE).met is False
    assert of(verdicts, Path.SESSION, Path.SERVE).met is True
    assert of(verdicts, Path.ROUTER, Path.SESSION).met is None
    words = [row[-1] for row in report.verdict_table(verdicts)]
    assert "**missed**" in words
    assert "met" in words
    assert "not measured" in words


@pytest.mark.parametrize(
    ("device", "load_format", "aims"),
    [("gpu", "", "gpu-small"), ("gpu", "dummy", "gpu-large"), ("cpu", "", "cpu")],
)
def test_the_targets_are_those_of_what_ran(device, load_format, aims):
    plan = replace(PLAN, device=device, model=replace(PLAN.model, load_format=load_format))
    assert targets.aims(plan.to_json()) == aims
    assert targets.verdicts(record() | {"plan": plan.to_json()})


def test_the_page_tells_what_failed_and_how_the_paths_took_turns():
    page = report.page(record(look(Path.SESSION, 0, 5.0), failures={"serve": "it died\nhere"}), "")
    assert "**serve failed and is missing from then on:** it died" in page
    assert "took turns" in page
    plan = replace(PLAN, alternate=False).to_json()
    assert "One path after the other" in report.page(record() | {"plan": plan}, "")


def test_every_path_s_vllm_is_told_the_same():
    plan = replace(PLAN, model=replace(PLAN.model, load_format="dummy", max_num_batched_tokens=99))
    told = arguments.vllm_arguments(plan)
    line = arguments.command_line(told)
    settings = arguments.engine_settings(plan)
    assert told["max_num_seqs"] == 512
    assert line[line.index("--max-num-seqs") + 1] == settings["MAX_NUM_SEQS"] == "512"
    assert line[line.index("--max-num-batched-tokens") + 1] == "99"
    assert settings["MAX_NUM_BATCHED_TOKENS"] == "99"
    assert line[line.index("--load-format") + 1] == told["load_format"] == "dummy"
    rest = json.loads(settings.get("VLLM_ARGS", "{}"))
    assert "dummy" in (settings.get("LOAD_FORMAT"), rest.get("load_format"))


def test_switches_and_structures_reach_the_command_line():
    line = arguments.command_line(
        {"model": "m", "enforce_eager": True, "x_y": False, "z": {"a": 1}}
    )
    assert line == ["--model", "m", "--enforce-eager", "--no-x-y", "--z", '{"a": 1}']


def test_an_argument_becomes_the_setting_that_stands_for_it():
    assert arguments.as_settings({"quantization": "fp8", "no_such": 1, "dtype": "auto"}) == {
        "QUANTIZATION": "fp8",
        "DTYPE": "auto",
        "VLLM_ARGS": '{"no_such": 1}',
    }


def test_no_more_callers_than_streams_and_none_in_process():
    assert PLAN.callers(Path.SERVE, 512) == 8
    assert PLAN.callers(Path.SERVE, 1) == 1
    assert PLAN.callers(Path.SESSION, 512) == 2
    assert PLAN.callers(Path.ASYNC, 512) == 0


def test_on_a_cpu_the_time_of_a_slot_is_told_and_not_judged():
    plan = replace(PLAN, device="cpu").to_json()
    for told, judged in ((record(), True), (record() | {"plan": plan}, None)):
        found = [v for v in targets.verdicts(told) if "from cancel" in v.what]
        assert [verdict.met for verdict in found] == [judged, judged]
