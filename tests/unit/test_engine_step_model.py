"""The step model is learned from steps, whatever they are like, and a slow spell is not learned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local_engine.load_meter import LoadMeter, StepSize
from services.local_engine.step_model import StepModel, StepModelFit

H100 = StepModel(5753e-6, 17.25e-6, 6.0e-6, 0.052e-6)
CPU = StepModel(25e-3, 600e-6, 4e-3, 2e-6)


class Serving:
    """Sizes of the steps of an engine: jobs come with a prompt, grow, and go."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._contexts: list[int] = [500]

    def __iter__(self) -> Iterator[StepSize]:
        return self

    def __next__(self) -> StepSize:
        chance, contexts = self._chance, self._contexts
        prefill = chance.randint(20, 2048) if chance.random() < 0.1 else 0
        size = StepSize(prefill, len(contexts), sum(contexts))
        contexts[:] = [context + 1 for context in contexts]
        if prefill:
            contexts.append(prefill)
        if len(contexts) > 1 and chance.random() < 0.1:
            contexts.pop(chance.randrange(len(contexts)))
        return size

    def noise(self) -> float:
        return self._chance.uniform(0.93, 1.07)


def ratio(meter: LoadMeter) -> float:
    load = meter.report(
        running=1, kv_used_tokens=0, kv_total_tokens=0, max_running=1, prefill_budget=1
    )
    return load.step_time_ratio


def run(meter: LoadMeter, truth: StepModel, serving: Serving, steps: int, slow: float = 1) -> float:
    """Runs steps, each so many times as slow as the truth; returns how long they took."""
    took = 0.0
    for _ in range(steps):
        size = next(serving)
        seconds = truth.seconds(size.prefill, size.decodes, size.context) * slow * serving.noise()
        meter.step(seconds, size)
        took += seconds
    return took


def learned(meter: LoadMeter) -> StepModel:
    assert meter.model is not None
    return meter.model


@pytest.mark.parametrize("truth", [H100, CPU])
@pytest.mark.parametrize("seed", range(5))
def test_what_steps_cost_is_learned(truth, seed):
    meter, serving = LoadMeter(lambda: 0.0), Serving(seed)
    run(meter, truth, serving, 600)
    model = learned(meter)
    for size in ((0, 1, 500), (0, 20, 20_000), (512, 10, 10_000), (2048, 1, 1000)):
        assert model.seconds(*size) == pytest.approx(truth.seconds(*size), rel=0.15)
    assert model.prefill == pytest.approx(truth.prefill, rel=0.15)


@pytest.mark.parametrize("truth", [H100, CPU])
@pytest.mark.parametrize("seed", range(5))
def test_a_slow_spell_shows_within_20_steps_and_is_not_learned(truth, seed):
    meter, serving = LoadMeter(lambda: 0.0), Serving(seed)
    run(meter, truth, serving, 400)
    before = learned(meter)
    took = run(meter, truth, serving, 20, slow=3)
    assert ratio(meter) == pytest.approx(3, rel=0.15)
    while took < 10:
        took += run(meter, truth, serving, 1, slow=3)
    assert ratio(meter) == pytest.approx(3, rel=0.15)
    for was, became in zip(astuple(before), astuple(learned(meter)), strict=True):
        assert became == pytest.approx(was, rel=0.2, abs=1e-9)
    run(meter, truth, serving, 20)
    assert ratio(meter) == pytest.approx(1, rel=0.15)


def test_a_change_for_good_is_believed_in_the_end():
    meter = LoadMeter(lambda: 0.0)
    size = StepSize(0, 8, 4000)
    for _ in range(500):
        meter.step(0.01, size)
    for _ in range(150_000):
        meter.step(0.02, size)
    assert ratio(meter) < 1.3
    assert learned(meter).seconds(0, 8, 4000) > 0.015


def test_what_was_learned_in_a_slow_spell_is_soon_corrected():
    meter, serving = LoadMeter(lambda: 0.0), Serving(3)
    run(meter, H100, serving, 200, slow=3)
    assert ratio(meter) == pytest.approx(1, rel=0.2)
    run(meter, H100, serving, 4000)
    assert ratio(meter) == pytest.approx(1, rel=0.15)


def test_a_size_never_seen_is_learned_in_a_slow_spell_as_it_would_have_been_without():
    meter = LoadMeter(lambda: 0.0)
    for _ in range(200):
        meter.step(0.01, StepSize(0, 8, 4000))
    for _ in range(30):
        meter.step(0.03, StepSize(0, 8, 4000))
    for _ in range(3):
        meter.step(0.12, StepSize(1000, 8, 5000))
    assert learned(meter).seconds(1000, 8, 5000) == pytest.approx(0.04, rel=0.1)
    assert ratio(meter) == pytest.approx(3, rel=0.1)


def test_features_that_rise_and_fall_together_are_told_apart_by_nothing_and_harm_nothing():
    fit = StepModelFit()
    for turn in range(40):
        for grown in range(100):
            context = 8 * (100 + grown)  # the same in each turn, a multiple of the sequences
            fit.learn(0, 8, context, 0.02 + 1e-6 * context)
        fit.learn(512, 8, 800, 0.05)
        assert fit.model is None or min(astuple(fit.model)) >= 0, turn
    assert fit.model is not None
    for context in (800, 1200, 1600):
        expected = 0.02 + 1e-6 * context
        assert fit.model.seconds(0, 8, context) == pytest.approx(expected, rel=0.05)
    # What cannot be told apart is the fixed part's: four times the load is not four times as slow.
    assert fit.model.seconds(0, 32, 6400) < 0.04


def test_thousands_of_steps_alike_do_not_wash_out_what_others_taught():
    fit = StepModelFit()
    for _ in range(40):
        fit.learn(512, 8, 1500, 0.05)
    for _ in range(20_000):
        fit.learn(0, 8, 1000, 0.02)
    assert fit.model is not None
    assert fit.model.seconds(0, 8, 1000) == pytest.approx(0.02, rel=0.02)
    assert fit.model.seconds(512, 8, 1500) == pytest.approx(0.05, rel=0.05)


def test_a_short_prefill_with_much_overhead_does_not_make_long_ones_take_for_ever():
    fit = StepModelFit()
    for _ in range(20):
        fit.learn(3, 0, 0, 0.03)
    for _ in range(200):
        fit.learn(0, 1, 10, 0.02)
    assert fit.model is not None
    assert fit.model.seconds(2048, 1, 10) < 0.5  # 7 s by the difference between the two


def test_a_pause_of_the_process_is_not_taken_for_what_steps_cost():
    fit = StepModelFit()
    for number in range(2000):
        fit.learn(0, 8, 1000, 2.0 if number % 100 == 99 else 0.02)
    assert fit.model is not None
    assert fit.model.seconds(0, 8, 1000) == pytest.approx(0.02, rel=0.05)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4096),
            st.integers(0, 300),
            st.integers(0, 1_000_000),
            st.floats(1e-5, 20.0),
            st.floats(0.1, 10.0),
        ),
        min_size=1,
        max_size=120,
    )
)
def test_no_coefficient_is_ever_negative_or_without_bound(steps):
    fit = StepModelFit()
    for prefill, decode, context, seconds, slow in steps:
        fit.learn(prefill, decode, context, seconds, slow)
        if fit.model is not None:
            assert all(0 <= part < 1e6 for part in astuple(fit.model))


def test_memory_is_bounded_however_many_sizes_come():
    fit, chance = StepModelFit(), random.Random(1)
    for _ in range(3000):
        size = [chance.randrange(1 << chance.randrange(1, 20)) for _ in range(3)]
        fit.learn(*size, 0.01)
    assert len(fit._cells) <= 256
