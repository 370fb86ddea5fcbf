"""The simulation keeps to its own rules: tokens by position, budgets, fairness, time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local_engine.simulation import tokenizer as sim_tokenizer
from services.local_engine.simulation.model import (
    PrefixBlocks,
    SimLimits,
    SimModel,
    Stream,
    answer_seed,
    natural_length,
    token_at,
)
from services.local_engine.step_model import StepModel

PACE = StepModel(1.0, 0.1, 0.01, 0.001)


def stream(
    prompt: Sequence[int] = (300,) * 10, length: int = 5, *, produced: int = 0, key: str = "job"
) -> Stream:
    return Stream(
        key=(key, 0),
        prompt=prompt,
        seed=answer_seed(prompt),
        produced=produced,
        length_limit=length,
        eos_at=None,
    )


def drain(model: SimModel, limit: int = 1000) -> list[list[tuple[str, int]]]:
    steps = []
    while model.busy:
        steps.append([(s.key[0], token) for s, token in model.step().tokens])
        assert len(steps) < limit, "the model does not come to an end"
    return steps


def test_tokens_depend_on_prompt_choice_seed_and_position_alone():
    assert answer_seed([1, 2]) == answer_seed((1, 2))
    seeds = {answer_seed([1, 2]), answer_seed([2, 1]), answer_seed([1, 2], 1)}
    assert len(seeds | {answer_seed([1, 2], 0, 7)}) == 4
    seed = answer_seed([1, 2])
    assert token_at(seed, 0) == sim_tokenizer.LABEL
    assert len({token_at(seed, n) for n in range(1, 50)}) > 40


def test_a_stream_yields_its_tokens_in_order_and_ends_at_its_limit():
    model = SimModel(SimLimits(), PACE)
    model.add(stream(length=4))
    seed = answer_seed((300,) * 10)
    assert [t for step in drain(model) for _, t in step] == [token_at(seed, n) for n in range(4)]
    assert model.kv_used == 0


def test_a_resumed_stream_yields_what_the_whole_one_would_have():
    model = SimModel(SimLimits(), PACE)
    model.add(stream(length=8, produced=5))
    seed = answer_seed((300,) * 10)
    assert [t for step in drain(model) for _, t in step] == [token_at(seed, n) for n in (5, 6, 7)]


def test_an_answer_ends_by_itself_with_the_end_token():
    model = SimModel(SimLimits(), PACE)
    ending = stream(length=100)
    ending.eos_at = 3
    model.add(ending)
    tokens = [t for step in drain(model) for _, t in step]
    assert len(tokens) == 4
    assert tokens[-1] == sim_tokenizer.EOS
    assert 1 <= natural_length(ending.seed, 10) <= 20


def test_no_more_run_at_once_than_allowed_and_the_first_come_goes_first():
    model = SimModel(SimLimits(max_running=2), PACE)
    for name in "abc":
        model.add(stream([ord(name)] * 10, 3, key=name))
    steps = drain(model)
    assert [sorted(name for name, _ in step) for step in steps[:3]] == [["a", "b"]] * 3
    assert all(name == "c" for step in steps[3:] for name, _ in step)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode():
    model = SimModel(SimLimits(prefill_budget=100), PACE)
    model.add(stream([1] * 10, 8, key="short"))
    assert [s.key[0] for s, _ in model.step().tokens] == ["short"]
    model.add(stream(list(range(250)), 2, key="long"))
    steps = [model.step() for _ in range(3)]
    assert [step.prefill_tokens for step in steps] == [99, 99, 52]
    assert [[s.key[0] for s, _ in step.tokens] for step in steps] == [
        ["short"],
        ["short"],
        ["short", "long"],
    ]


def test_a_step_takes_what_the_model_says():
    model = SimModel(SimLimits(), PACE)
    model.add(stream())
    assert model.step().seconds == pytest.approx(1.0 + 0.1 * 10)
    assert model.step().seconds == pytest.approx(1.0 + 0.01 + 0.001 * 11)


def test_a_prompt_seen_before_is_not_prefilled_again():
    model = SimModel(SimLimits(block=16), PACE)
    prompt = list(range(40))
    model.add(stream(prompt, 1))
    assert model.step().prefill_tokens == 40
    again = stream([*prompt[:32], *range(500, 508)], 1)
    model.add(again)
    assert model.step().prefill_tokens == 8
    assert again.cached == 32


def test_of_a_prompt_in_the_cache_the_end_leaves_first():
    cache = PrefixBlocks(4, capacity=6)
    cache.add(list(range(16)))
    cache.add(list(range(100, 112)))
    assert cache.match([*range(16), -1]) == 12
    assert cache.match([*range(100, 112), -1]) == 12
    cache.add(list(range(200, 208)))
    assert cache.match([*range(16), -1]) == 4


def test_a_sequence_that_was_preempted_found_in_the_cache_what_it_found_at_first():
    model = SimModel(SimLimits(kv_tokens=64, block=4), PACE)
    both = [stream([number] * 20, 20, key=str(number)) for number in range(2)]
    for one in both:
        model.add(one)
    drain(model)
    assert any(one.preempted for one in both)
    assert [one.cached for one in both] == [0, 0]


def test_what_does_not_fit_into_the_cache_waits_and_everything_ends():
    model = SimModel(SimLimits(kv_tokens=64), PACE)
    for number in range(6):
        model.add(stream([number] * 20, 20, key=str(number)))
    steps = []
    while model.busy:
        steps.append(model.step())
        assert model.kv_used <= 64
        assert len(steps) < 500
    produced = [s.key[0] for step in steps for s, _ in step.tokens]
    assert {produced.count(str(n)) for n in range(6)} == {20}


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(0, 5)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
    st.integers(1, 64),
)
def test_every_stream_gets_exactly_its_tokens_whatever_the_limits(jobs, running, budget):
    limits = SimLimits(max_running=running, prefill_budget=budget, kv_tokens=100, block=4)
    model = SimModel(limits, PACE)
    for number, (size, length, produced) in enumerate(jobs):
        model.add(stream([number] * size, produced + length, produced=produced, key=str(number)))
    got: dict[str, list[int]] = {}
    for step in drain(model, 5000):
        for key, token in step:
            got.setdefault(key, []).append(token)
    for number, (size, length, produced) in enumerate(jobs):
        seed = answer_seed([number] * size)
        assert got[str(number)] == [token_at(seed, produced + n) for n in range(length)]


@given(st.text())
def test_the_tokenizer_gives_back_every_text(text):
    text = text.encode("utf-8", "replace").decode()
    assert sim_tokenizer.decode(sim_tokenizer.encode(text)) == text


def test_known_words_are_one_token_each():
    token = token_at(1, 5)
    assert sim_tokenizer.encode("[sim]" + sim_tokenizer.word(token)) == [sim_tokenizer.LABEL, token]
