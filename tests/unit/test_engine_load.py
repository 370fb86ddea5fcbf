"""The load that an engine reports follows its jobs and steps exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local_engine.engine import EngineLoad
from services.local_engine.load_meter import JobLoad, LoadMeter, StepSize
from services.local_engine.settings import Settings
from services.local_engine.step_model import StepModel
from services.local_engine.wire import load_report


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def report(meter: LoadMeter, running: int = 99) -> EngineLoad:
    return meter.report(
        running=running, kv_used_tokens=10, kv_total_tokens=100, max_running=8, prefill_budget=64
    )


def test_a_job_is_queued_then_context_then_gone():
    meter = LoadMeter(Clock())
    job = meter.admit(30, 2)
    load = report(meter, running=0)
    assert (load.running, load.waiting, load.queued_prefill_tokens) == (0, 2, 30)
    job.prefilled(cached=10)
    job.prefilled(cached=10)
    job.produced(1)
    load = report(meter)
    assert (load.running, load.waiting) == (2, 0)
    assert (load.queued_prefill_tokens, load.context_tokens) == (0, 31)
    job.choice_ended()
    assert report(meter).running == 1
    job.end()
    job.end()
    load = report(meter)
    assert (load.running, load.waiting, load.context_tokens, load.kv_used_tokens) == (0, 0, 0, 0)


def test_a_job_that_ends_while_queued_leaves_nothing_behind():
    meter = LoadMeter(Clock())
    meter.admit(30, 1).end()
    assert report(meter) == EngineLoad(kv_total_tokens=100, max_running=8, prefill_budget=64)


def test_the_rate_is_that_of_the_last_second():
    clock = Clock()
    meter = LoadMeter(clock)
    job = meter.admit(1, 1)
    for _ in range(20):
        clock.now += 0.1
        job.produced(5)
        meter.step(0.1)
    assert report(meter).output_tokens_per_second == pytest.approx(50, abs=5)
    clock.now += 2
    assert report(meter).output_tokens_per_second == 0


def test_the_ratio_shows_a_slow_spell_and_its_end():
    meter = LoadMeter(Clock(), StepModel(0.01, 0, 0.001, 0))
    job = meter.admit(1, 1)

    def steps(count: int, seconds: float) -> float:
        for _ in range(count):
            job.produced(1)
            meter.step(seconds)
        return report(meter).step_time_ratio

    assert steps(20, 0.011) == pytest.approx(1.0)
    assert steps(20, 0.033) == pytest.approx(3.0, rel=0.05)
    assert steps(30, 0.011) == pytest.approx(1.0, rel=0.05)


def test_a_ratio_is_forgotten_while_nothing_runs_and_kept_while_something_does():
    clock = Clock()
    meter = LoadMeter(clock, StepModel(0.01, 0, 0.001, 0))

    def steps(job: JobLoad, count: int, seconds: float) -> None:
        for _ in range(count):
            clock.now += seconds
            job.produced(1)
            meter.step(seconds)

    job = meter.admit(1, 1)
    steps(job, 40, 0.099)
    assert report(meter).step_time_ratio == pytest.approx(9.0, rel=0.01)
    clock.now += 5  # in the midst of a long step: nothing says that it is a fast one
    assert report(meter).step_time_ratio == pytest.approx(9.0, rel=0.01)
    clock.now -= 5
    job.end()
    clock.now += 5
    assert report(meter).step_time_ratio == pytest.approx(5.0, rel=0.01)
    clock.now += 55
    assert report(meter).step_time_ratio == pytest.approx(1.0, abs=0.01)
    # What comes after a pause is measured from there, and not from what was before it.
    steps(meter.admit(1, 1), 1, 0.011)
    assert report(meter).step_time_ratio == pytest.approx(1.0, abs=0.01)


def test_a_half_read_prompt_counts_only_its_rest():
    meter = LoadMeter(Clock())
    first, second = meter.admit(100, 1), meter.admit(50, 1)
    meter.step(0.01, StepSize(60, 0, 0))
    load = report(meter)
    assert (load.queued_prefill_tokens, load.context_tokens) == (90, 60)
    meter.step(0.01, StepSize(60, 0, 60))
    assert report(meter).queued_prefill_tokens == 30
    first.prefilled()
    first.produced(1)
    meter.step(0.01, StepSize(20, 0, 120))
    load = report(meter)
    # Of the 140 tokens read so far 100 were the first prompt's, so 40 are the second's.
    assert (load.queued_prefill_tokens, load.context_tokens) == (10, 141)
    second.end()
    first.end()
    load = report(meter)
    assert (load.queued_prefill_tokens, load.context_tokens) == (0, 0)


def test_a_prompt_that_was_read_out_of_turn_gives_back_what_was_put_down_to_another():
    meter = LoadMeter(Clock())
    meter.admit(100, 1)
    urgent = meter.admit(80, 1)
    meter.step(0.01, StepSize(64, 0, 0))  # of the urgent one, which is not known
    urgent.prefilled()
    urgent.produced(1)
    meter.step(0.01, StepSize(16, 0, 0))
    assert report(meter).queued_prefill_tokens == 100


def test_tokens_that_the_cache_holds_are_not_queued():
    meter = LoadMeter(Clock())
    job = meter.admit(100, 1, 64)
    assert report(meter).queued_prefill_tokens == 36
    job.prefilled(cached=64)
    job.produced(1)
    meter.step(0.01)
    load = report(meter)
    assert load.queued_prefill_tokens == 0
    assert load.context_tokens == 101
    assert load.prefill_tokens_per_step == 36


def test_the_pace_of_a_warm_up_is_forgotten():
    meter = LoadMeter(Clock())
    job = meter.admit(3, 1)
    job.prefilled()
    for _ in range(100):
        job.produced(1)
        meter.step(5.0)
    job.choice_ended()
    job.end()
    meter.forget_pace()
    assert report(meter) == EngineLoad(kv_total_tokens=100, max_running=8, prefill_budget=64)


def test_steps_that_compute_nothing_are_no_steps():
    meter = LoadMeter(Clock(), StepModel(0.01, 0, 0, 0))
    for _ in range(10):
        meter.step(5.0, StepSize(0, 0, 0))
    assert report(meter).step_time_ratio == 1.0
    assert report(meter).step_time == 0.0


def test_the_given_model_is_reported_in_microseconds():
    meter = LoadMeter(Clock(), StepModel.parse("5753,17.25,6,0.052"))
    model = load_report(report(meter), sequence=1, draining=False).step_model
    assert (model.base, model.prefill, model.decode) == (5753, 17.25, 6)
    assert model.context == pytest.approx(0.052)


def test_a_model_is_reported_once_it_is_learned_and_not_before():
    meter = LoadMeter(Clock())
    meter.admit(1, 1).prefilled()
    for _ in range(31):
        meter.step(0.02, StepSize(0, 1, 100))
    assert not load_report(report(meter), sequence=1, draining=False).HasField("step_model")
    meter.step(0.02, StepSize(0, 1, 100))
    model = load_report(report(meter), sequence=1, draining=False).step_model
    assert model.base == pytest.approx(20_000, rel=0.05)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 200),
            st.integers(0, 120),
            st.integers(0, 120),
        ),
        max_size=60,
    )
)
def test_whatever_happens_nothing_is_left_and_nothing_is_less_than_nothing(events):
    meter = LoadMeter(Clock())
    jobs: list[JobLoad] = []
    for what, number, tokens, other in events:
        if what == 0 or not jobs:
            jobs.append(meter.admit(number, 1 + tokens % 3, min(number, other)))
        elif what == 1:
            job = jobs[number % len(jobs)]
            job.prefilled(cached=other)
            job.produced(tokens % 4)
        else:
            jobs[number % len(jobs)].end()
        meter.step(0.01, StepSize(tokens, other % 8, 0) if number % 2 else None)
        load = report(meter)
        assert load.queued_prefill_tokens == sum(job.unread for job in meter.unread)
        assert all(job.read >= 0 for job in meter.unread)
        assert min(load.queued_prefill_tokens, load.context_tokens, load.waiting) >= 0
    for job in jobs:
        job.end()
    load = report(meter)
    assert (load.queued_prefill_tokens, load.context_tokens, load.running) == (0, 0, 0)
    assert (meter.decoding, meter.sequences) == (0, 0)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "1,2,3,-4"])
def test_a_step_model_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        StepModel.parse(text)
    if text:
        with pytest.raises(ValueError, match="step_model"):
            Settings(step_model=text)


def test_a_model_is_named_by_the_last_part_of_its_path():
    assert Settings(model="/models/river-7b/").names == ("river-7b",)
    assert Settings(model="org/river", model_aliases=("a",)).names == ("river", "a")
    assert Settings(engine="sim").names == ("sim",)
