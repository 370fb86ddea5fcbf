"""The routing laboratory's replica: what goes in comes out, within what it can hold."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from bench.routing.prefix_cache import PrefixCache
from bench.routing.prompts import PromptTree
from bench.routing.replica import Replica, Shape
from bench.routing.speeds import Antagonists, StepCosts, always, even
from bench.routing.workloads import Job, Trace, lengths

BLOCK = 64
TIGHT = Shape(budget=256, max_running=12, kv_tokens=9_000, block=BLOCK)


def jobs(count: int, *, shared: bool = True, most: int = 4_000, seed: int = 0) -> list[Job]:
    tree = PromptTree(BLOCK, Random(f"{seed}/tree"))
    found = []
    for prompt, output in islice(lengths(Trace.CONVERSATION, Random(seed)), count):
        tokens = min(prompt, most)
        blocks = tree.prompt(tokens) if shared else ()
        found.append(Job(len(found), 0.0, tokens, output, blocks))
    return found


def steps(replica: Replica, now: float = 0.0) -> float:
    """Plays everything to its end, checking the books after each step; when that was."""
    while (seconds := replica.begin(now)) is not None:
        check(replica)
        now += seconds
        news = replica.end()
        for job in news.first:
            assert job.first is None, "a first token comes once"
            job.first = now
        for job in news.ended:
            assert job.ended is None
            job.ended = now
        check(replica)
    return now


def check(replica: Replica) -> None:
    shape = replica.shape
    assert replica.running <= shape.max_running
    assert 0 <= replica.kv_used <= shape.kv_tokens
    report = replica.report()
    assert report.queued_prefill_tokens >= 0
    # Sequences that share blocks each attend to all of them.
    assert 0 <= report.context_tokens <= max(1, report.running) * shape.kv_tokens


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [TIGHT, Shape(budget=2048, kv_tokens=40_000, block=BLOCK)])
def test_every_token_that_goes_in_comes_out_and_nothing_is_left(shape, shared):
    replica, all_of_them = Replica(shape), jobs(300, shared=shared)
    for job in all_of_them:
        replica.take(job)
    steps(replica)
    totals = replica.totals
    assert all(job.ended is not None and job.first is not None for job in all_of_them)
    assert totals.ended == len(all_of_them)
    assert totals.produced == sum(job.output for job in all_of_them)
    again = totals.prefilled + totals.cached - sum(job.prompt for job in all_of_them)
    # What was preempted is read again, and only that.
    assert again >= 0
    assert (again > 0) == (totals.preempted > 0)
    assert (replica.running, replica.waiting, replica.kv_used) == (0, 0, 0)
    assert (replica.report().queued_prefill_tokens, replica.report().context_tokens) == (0, 0)
    assert totals.most_running <= shape.max_running
    assert totals.most_kv <= shape.kv_tokens


def test_a_full_memory_preempts_the_last_and_nobody_is_lost():
    replica = Replica(Shape(budget=4096, max_running=64, kv_tokens=6_000, block=BLOCK))
    for number in range(40):
        replica.take(Job(number, 0.0, 300, 400))
    steps(replica)
    assert replica.totals.preempted > 0
    assert replica.totals.produced == 40 * 400


def test_a_step_takes_what_its_tokens_cost():
    costs = StepCosts(base=1.0, prefill=0.01, decode=0.1, context=0.001)
    replica = Replica(Shape(budget=100, costs=costs, block=BLOCK))
    replica.take(Job(0, 0.0, 150, 3))
    # Two chunks, the second of which brings the first token; then two more tokens.
    assert replica.begin(0.0) == pytest.approx(1.0 + 100 * 0.01 + 100 * 0.001)
    assert replica.end().first == []
    assert replica.begin(0.0) == pytest.approx(1.0 + 50 * 0.01 + 150 * 0.001)
    assert len(replica.end().first) == 1
    assert replica.begin(0.0) == pytest.approx(1.0 + 0.1 + 150 * 0.001)
    replica.end()
    assert replica.begin(0.0) == pytest.approx(1.0 + 0.1 + 151 * 0.001)
    assert len(replica.end().ended) == 1
    assert replica.begin(0.0) is None


def test_decoding_sequences_come_first_and_leave_the_rest_of_the_budget_to_prompts():
    replica = Replica(Shape(budget=100, block=BLOCK))
    for number in range(10):
        replica.take(Job(number, 0.0, 10, 50))
    replica.begin(0.0)
    replica.end()
    replica.take(Job(10, 0.0, 1_000, 5))
    before = replica.totals.prefilled
    replica.begin(0.0)
    assert replica.totals.prefilled - before == 90


def test_what_a_step_computes_counts_as_queued_until_the_step_is_over():
    replica = Replica(Shape(budget=100, block=BLOCK))
    replica.take(Job(0, 0.0, 250, 5))
    replica.begin(0.0)
    assert replica.report().queued_prefill_tokens == 250
    replica.end()
    assert replica.report().queued_prefill_tokens == 150


def test_the_reported_ratio_follows_a_replica_that_becomes_slow():
    slow_after = 1.0
    replica = Replica(Shape(block=BLOCK), lambda now: 3.0 if now >= slow_after else 1.0)
    replica.take(Job(0, 0.0, 100, 1_000))
    now = 0.0
    while now < slow_after:
        now += replica.begin(now) or 0.0
        replica.end()
    assert replica.report().step_time_ratio == pytest.approx(1.0)
    for _ in range(30):
        now += replica.begin(now) or 0.0
        replica.end()
    assert replica.report().step_time_ratio == pytest.approx(3.0, rel=0.01)


def test_a_prompt_whose_beginning_is_held_computes_the_rest_only():
    replica = Replica(Shape(block=BLOCK))
    names = tuple(range(10))
    replica.take(Job(0, 0.0, 10 * BLOCK + 5, 2, names))
    steps(replica)
    assert replica.cache_changes().stored == list(names)
    again = Job(1, 0.0, 10 * BLOCK + 5, 2, names)
    replica.take(again)
    steps(replica)
    assert again.cached == 10 * BLOCK
    # Of a prompt that is held whole, one block is computed all the same.
    whole = Job(2, 0.0, 10 * BLOCK, 2, names)
    replica.take(whole)
    steps(replica)
    assert whole.cached == 9 * BLOCK
    assert replica.totals.prefilled == 10 * BLOCK + 5 + 5 + BLOCK


def test_unused_blocks_make_room_and_are_told_as_removed():
    replica = Replica(Shape(kv_tokens=20 * BLOCK, block=BLOCK))
    for number in range(4):
        names = tuple(range(100 * number, 100 * number + 8))
        replica.take(Job(number, 0.0, 8 * BLOCK, 2, names))
        steps(replica)
    changes = replica.cache_changes()
    assert len(changes.stored) == 32
    held = set(changes.stored) - set(changes.removed)
    assert len(held) <= 20
    # The latest prompt is there whole.
    assert set(range(300, 308)) <= held


def test_a_killed_replica_tells_what_was_delivered_and_the_rest_is_done_elsewhere():
    first, second = Replica(TIGHT), Replica(TIGHT)
    work = jobs(40)
    for job in work:
        first.take(job)
    now = 0.0
    for _ in range(200):
        now += first.begin(now) or 0.0
        news = first.end()
        for job in news.first:
            job.first = now
        for job in news.ended:
            job.ended = now
    lost = first.kill()
    assert {job.number for job in lost} == {job.number for job in work if job.ended is None}
    assert any(job.delivered for job in lost)
    assert all(0 <= job.delivered < job.output for job in lost)
    assert all((job.delivered > 0) == (job.first is not None) for job in lost)
    for job in lost:
        second.take(job)
    steps(second, now)
    produced = sum(job.output for job in work)
    assert sum(job.output - job.delivered for job in lost) == second.totals.produced
    assert all(job.ended is not None for job in work)
    # What was made in a step that nobody heard of is not counted twice.
    assert first.totals.produced + second.totals.produced == produced


def test_a_job_that_never_fits_is_refused():
    with pytest.raises(ValueError, match="never fits"):
        Replica(TIGHT).take(Job(0, 0.0, 9_000, 1))


def test_antagonists_come_for_their_share_of_the_time():
    slow = Antagonists(3.0, 0.1, 5.0, Random("antagonists"))
    found = [slow(0.5 * moment) for moment in range(100_000)]
    assert set(found) == {1.0, 3.0}
    assert found.count(3.0) / len(found) == pytest.approx(0.1, rel=0.1)
    assert even(7.0) == 1.0
    assert always(2.0)(7.0) == 2.0


def test_a_block_stays_while_anybody_uses_it_and_the_deepest_unused_goes_first():
    cache = PrefixCache()
    assert cache.use((1, 2, 3)) == [1, 2, 3]
    assert cache.use((1, 2)) == []
    cache.leave((1, 2, 3))
    assert (cache.used, cache.unused) == (2, 1)
    cache.leave((1, 2))
    assert cache.held((1, 2, 3, 4)) == 3
    assert cache.keep_at_most(1) == [3, 2]
    assert cache.held((1, 2, 3)) == 1
