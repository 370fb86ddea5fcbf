"""The overflow benchmark's trace: what comes when, how long it is, and what the answer must be."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from statistics import fmean, pstdev

import pytest

from anabranch.v1 import generation_pb2 as pb
from bench.overflow import plan, requests, trace
from bench.overflow.plan import Engines, Strategy
from bench.overflow.trace import Item
from services.local_engine.engine import Finish, SamplingSpec
from services.local_engine.simulation import tokenizer as sim_tokenizer
from services.local_engine.simulation.engine import SimEngine, SimOptions
from tests.support.engines import run_job

PHASES = plan.steps(5.0, 0.8, 1.5, 0.8)


def made(seed: str = "0", rate: float = 40.0) -> list[Item]:
    return trace.make(seed, rate, PHASES, private=0.15)


def test_each_phase_has_as_many_requests_as_its_load_asks_for():
    items = made()
    counts = [sum(begins <= item.at < begins + 5.0 for item in items) for begins in (0, 5, 10)]
    assert counts == [160, 300, 160]
    assert [item.at for item in items] == sorted(item.at for item in items)
    assert [item.number for item in items] == list(range(620))


def test_a_share_of_each_phase_is_private():
    items = made()
    assert [sum(i.private for i in items[a:b]) for a, b in ((0, 160), (160, 460))] == [24, 45]


def test_a_seed_gives_one_trace_and_another_seed_another():
    assert made("7") == made("7")
    assert made("7") != made("8")


def test_arrivals_come_in_bursts_of_the_stated_variation():
    times = trace.arrivals(20_000, 1000.0, Random(1))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.05, rel=0.02)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(trace.CV, rel=0.1)


@pytest.mark.parametrize(
    ("percentile", "length"), [(0, 29), (1, 29), (50, 1020), (95, 4083), (99.9, 6179), (100, 6179)]
)
def test_lengths_are_those_of_the_published_percentiles(percentile, length):
    assert trace.scaled(trace._INPUT, percentile, 1.0, 1) == length


def test_between_percentiles_the_logarithm_is_linear():
    assert trace.scaled((100,) * 6 + (100, 400) + (400,) * 6, 55, 1.0, 1) == 200


def test_lengths_are_spread_over_their_whole_distribution_in_any_trace():
    few = trace.lengths(trace._OUTPUT, 1.0, 1, 50, Random(3))
    whole = [trace.scaled(trace._OUTPUT, at, 1.0, 1) for at in range(0, 100, 2)]
    assert fmean(few) == pytest.approx(fmean(whole), rel=0.1)


def test_means_are_those_of_what_is_drawn():
    items = made(rate=400.0)
    assert fmean(item.output for item in items) == pytest.approx(trace.mean_output(), rel=0.02)
    assert fmean(item.prompt for item in items) == pytest.approx(trace.mean_prompt(), rel=0.02)


def test_the_modelled_capacity_is_that_of_full_steps():
    engines = Engines(count=2, slots=4, base=10_000.0, prefill=100.0, decode=1_000.0, context=0.0)
    # A step of four: 14 ms, and 4 × 200 / 50 tokens prefilled in it: 1.6 ms.
    assert engines.tokens_per_second(200, 50) == pytest.approx(8 / 15.6e-3)


def test_every_round_begins_with_another_strategy():
    orders = [plan.FULL.order(number) for number in range(len(Strategy))]
    assert {order[0] for order in orders} == set(Strategy)
    assert all(set(order) == set(Strategy) for order in orders)


def test_the_whole_run_takes_twelve_minutes_at_most():
    assert plan.FULL.seconds < 12 * 60
    assert plan.QUICK.seconds < 90


# Requests, and the answers that they must get

ITEM = Item(number=12, at=1.0, private=False, prompt=150, output=30)


def test_a_prompt_has_about_the_tokens_that_it_should_have_and_its_mark_if_it_is_private():
    public, private = requests.prompt("3", ITEM), requests.prompt("3", Item(1, 0.0, True, 150, 30))
    framed = sim_tokenizer.encode(f"user: {public}\nassistant:")
    assert abs(len(framed) - ITEM.prompt) <= 1
    assert requests.PRIVATE not in public
    assert requests.PRIVATE in private


def test_prompts_of_two_looks_differ_from_their_beginning():
    first, second = (requests.prompt(look, ITEM) for look in ("3", "4"))
    assert first[:16] != second[:16]


@pytest.mark.parametrize("residency", [pb.RESIDENCY_LOCAL_ONLY, pb.RESIDENCY_CLOUD_ONLY])
def test_a_residency_can_be_added_to_a_serialised_request(residency):
    raw = requests.request("3", ITEM).SerializeToString() + requests.residing(residency)
    whole = pb.GenerateRequest.FromString(raw)
    assert whole.routing.residency == residency
    assert whole.sampling.max_tokens == ITEM.output


async def test_the_expected_local_answer_is_what_a_sim_engine_says():
    engine = SimEngine(SimOptions(speed=0.0, mean_output_tokens=requests.ENDLESS))
    asked = requests.request("3", ITEM)
    await engine.start()
    try:
        prompt = await engine.encode(asked)
        said = await run_job(engine, prompt, SamplingSpec(max_tokens=ITEM.output))
    finally:
        await engine.close()
    assert said.finish() is Finish.LENGTH
    assert said.tokens() == await requests.local_answer(asked)


def test_the_expected_cloud_answer_has_as_many_words_as_were_asked_for():
    answer = requests.cloud_answer(requests.request("3", ITEM))
    assert answer.startswith("[provider simulator]")
    assert len(answer.split()) == ITEM.output
