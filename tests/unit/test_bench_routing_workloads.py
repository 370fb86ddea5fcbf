"""What the routing laboratory draws: lengths, arrivals and prompts are as published."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from random import Random

import pytest

from bench.routing import tables
from bench.routing.arrivals import (
    STEADY,
    Profile,
    bursts,
    gamma,
    minutes,
    poisson,
    times,
    variation,
    waves,
)
from bench.routing.prompts import PromptTree, infinite_hit_rate
from bench.routing.quantiles import LogLinear, band, outline, percentile, share_below
from bench.routing.workloads import Trace, Workload, lengths, mean_lengths

COUNT = 40_000


def drawn(trace: Trace, count: int = COUNT) -> list[tuple[int, int]]:
    return list(islice(lengths(trace, Random(f"test/{trace.name}")), count))


@pytest.mark.parametrize(
    ("trace", "place", "row"),
    [
        (Trace.CONVERSATION, 0, tables.CONVERSATION_INPUT),
        (Trace.CODE, 0, tables.CODE_INPUT),
        (Trace.CODE, 1, tables.CODE_OUTPUT),
        (Trace.MOONCAKE, 0, tables.MOONCAKE_INPUT),
        (Trace.MOONCAKE, 1, tables.MOONCAKE_OUTPUT),
    ],
)
def test_lengths_have_the_published_percentiles(trace, place, row):
    ordered = sorted(pair[place] for pair in drawn(trace))
    for at, value in zip(tables.AT, row, strict=True):
        # Where the inverse CDF is steep, a draw's percentile is nearer than its value.
        near = percentile(ordered, max(0, at - 0.7)), percentile(ordered, min(100, at + 0.7))
        assert near[0] * 0.98 - 1 <= value <= near[1] * 1.02 + 1, (at, value, near)


@pytest.mark.parametrize("number", range(len(tables.BAND_OUTPUT)))
def test_answers_of_a_conversation_depend_on_the_prompt_as_published(number):
    ordered = sorted(
        output
        for prompt, output in drawn(Trace.CONVERSATION)
        if band(tables.BAND_EDGES, prompt) == number
    )
    for at, value in zip(tables.BAND_AT, tables.BAND_OUTPUT[number], strict=True):
        assert percentile(ordered, at) == pytest.approx(value, rel=0.08)


def test_answers_of_all_bands_together_are_about_those_of_the_whole_trace():
    ordered = sorted(output for _, output in drawn(Trace.CONVERSATION))
    for at, value in zip(tables.AT, tables.CONVERSATION_OUTPUT, strict=True):
        assert percentile(ordered, at) == pytest.approx(value, rel=0.25)


def test_mean_lengths_are_those_of_the_distribution():
    prompt, output = mean_lengths(Trace.CONVERSATION)
    table = LogLinear(list(zip(tables.AT, tables.CONVERSATION_INPUT, strict=True)))
    assert prompt == pytest.approx(table.mean(), rel=0.03)
    assert 190 < output < 240


def test_nothing_is_drawn_beyond_a_tables_ends_and_between_two_points_it_is_geometric():
    table = LogLinear([(10, 4.0), (90, 400.0)])
    assert [round(table.value(at), 6) for at in (0, 10, 50, 90, 100)] == [4, 4, 40, 400, 400]


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 5.0), (1, 6.0)], [(1, 6.0), (2, 5.0)]])
def test_a_table_that_does_not_rise_is_refused(points):
    with pytest.raises(ValueError, match="rise"):
        LogLinear(points)


def test_percentiles_of_a_sample_lie_between_its_neighbours():
    assert percentile([10.0, 20.0, 30.0], 50) == 20.0
    assert percentile([10.0, 20.0, 30.0], 75) == 25.0
    assert percentile([10.0, 20.0, 30.0], 100) == 30.0
    assert percentile([7.0], 99) == 7.0
    assert outline([10.0, 20.0], (0, 50, 100)) == [(10.0, 0), (15.0, 50), (20.0, 100)]
    assert share_below([1.0, 2.0, 3.0, 4.0], 3.0) == 0.75
    assert share_below([], 3.0) == 0.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("gap", "cv"), [(poisson, 1.0), (gamma(3.0), 3.0), (gamma(tables.CODE_CV), tables.CODE_CV)]
)
def test_arrivals_have_their_rate_and_their_variation(gap, cv):
    at = list(islice(times(10.0, STEADY, gap, Random("arrivals")), 60_000))
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert min(gaps) >= 0.0
    # The clumpier they are, the less a sample knows of its mean.
    assert len(at) / at[-1] == pytest.approx(10.0, rel=0.02 * cv)
    assert variation(gaps) == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("profile", [bursts(0.6, 1.4, 60.0, 0.5), waves(0.6, 1.4, 60.0)])
def test_a_load_that_changes_brings_as_many_requests_as_it_says_when_it_says(profile):
    at = list(islice(times(200.0, profile, poisson, Random("profile")), 120_000))
    by_piece = Counter(int(t % profile.period // profile.every) for t in at)
    whole = at[-1] / profile.period
    for piece, factor in enumerate(profile.factors):
        expected = 200.0 * factor * profile.every * whole
        assert by_piece[piece] == pytest.approx(expected, rel=0.1)


def test_the_busiest_minute_has_the_published_multiple_of_the_mean_load():
    profile = minutes(tables.MINUTE_PEAK, 10, Random("minutes"))
    assert max(profile.factors) / profile.mean == pytest.approx(tables.MINUTE_PEAK, rel=0.02)
    assert profile.every == 60.0
    assert min(profile.factors) > 0.0


def test_time_stands_still_for_arrivals_while_there_is_no_load():
    at = list(islice(times(10.0, Profile((0.0, 1.0), 5.0), poisson, Random(1)), 500))
    assert all(t % 10.0 >= 5.0 for t in at)


def test_prompts_share_as_many_blocks_as_mooncakes_do():
    tree = PromptTree(tables.MOONCAKE_BLOCK, Random("prompts"))
    prompts = [tree.prompt(tokens) for tokens, _ in drawn(Trace.MOONCAKE, 15_000)]
    assert infinite_hit_rate(prompts) == pytest.approx(tables.MOONCAKE_HIT, abs=0.02)


def test_a_block_names_everything_before_it():
    tree = PromptTree(tables.MOONCAKE_BLOCK, Random("chains"))
    before: dict[int, tuple[int, ...]] = {}
    for tokens, _ in drawn(Trace.MOONCAKE, 2_000):
        names = tree.prompt(tokens)
        assert len(names) == tokens // tables.MOONCAKE_BLOCK
        for depth, name in enumerate(names):
            assert before.setdefault(name, names[:depth]) == names[:depth]


def test_the_same_seed_brings_the_same_requests_whoever_serves_them():
    workload = Workload(Trace.MOONCAKE, 20.0)

    def seen(seed: int, routers: int) -> list[tuple[float, int, int, tuple[int, ...]]]:
        jobs = workload.jobs(20.0, seed, routers)
        return [(job.arrived, job.prompt, job.output, job.blocks) for job in jobs]

    assert seen(1, 1) == seen(1, 4)
    assert seen(1, 1) != seen(2, 1)


def test_routers_get_about_as_many_requests_each():
    jobs = Workload(Trace.CODE, 100.0).jobs(100.0, 1, routers=4)
    found = Counter(job.router for job in jobs)
    assert sorted(found) == [0, 1, 2, 3]
    assert max(found.values()) < 1.1 * len(jobs) / 4
