"""The load that an engine reports follows its jobs and steps exactly."""

from __future__ import annotations

import random

import pytest

from services.local_engine.engine import EngineLoad
from services.local_engine.load_meter import LoadMeter
from services.local_engine.settings import Settings
from services.local_engine.step_model import StepModel, StepModelFit


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


def test_the_step_model_is_learned_from_steps():
    truth = StepModel(0.005, 20e-6, 50e-6, 0.1e-6)
    fit = StepModelFit()
    chance = random.Random(7)
    for _ in range(500):
        load = (chance.choice([0, 0, 256, 1024]), chance.randint(1, 200), chance.randint(0, 50_000))
        fit.learn(*load, truth.seconds(*load) * chance.uniform(0.95, 1.05))
    assert fit.sound
    for load in ((0, 10, 1000), (2048, 1, 30_000), (0, 256, 100_000)):
        assert fit.predict(*load) == pytest.approx(truth.seconds(*load), rel=0.1)


def test_steps_that_are_all_alike_do_not_upset_the_fit():
    fit = StepModelFit()
    for _ in range(20_000):
        fit.learn(0, 8, 1000, 0.02)
    assert fit.predict(0, 8, 1000) == pytest.approx(0.02, rel=0.01)
    fit.learn(512, 8, 1500, 0.05)
    assert 0 < fit.predict(0, 8, 1000) < 0.2


def test_a_learned_ratio_shows_a_slow_spell_too():
    meter = LoadMeter(Clock())
    job = meter.admit(1, 1)
    for _ in range(100):
        job.produced(1)
        meter.step(0.02)
    for _ in range(10):
        job.produced(1)
        meter.step(0.06)
    assert report(meter).step_time_ratio > 2


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
