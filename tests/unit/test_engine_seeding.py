"""How seeds reach vLLM: keyed by position where that is possible, told to be counted elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.local_engine.engine import Continuation, Job, SamplingSpec
from services.local_engine.on_vllm.sampling import sampling_arguments
from services.local_engine.on_vllm.seeding import DRAWS, PROCESSOR, Seeding, choose


def config(*, v2: bool | None = False, drafts: bool = False, **model: Any) -> SimpleNamespace:
    fields = {"runner_type": "generate", "logprobs_mode": "raw_logprobs"} | model
    found = SimpleNamespace(
        model_config=SimpleNamespace(**{"logits_processors": None} | fields),
        speculative_config=object() if drafts else None,
    )
    if v2 is not None:
        found.use_v2_model_runner = v2
    return found


def arguments(seeding: Seeding, spec: SamplingSpec, existing: int = 0) -> dict[str, Any]:
    job = Job("1", [1], spec, 10, Continuation(tuple(range(existing))))
    return sampling_arguments(job, {"top_p": 0.75}, detokenize=False, seeding=seeding)


@pytest.mark.parametrize("v2", [False, None])
def test_the_first_runner_is_given_our_draws_beside_what_the_operator_gives_it(v2):
    plain, further = config(v2=v2), config(v2=v2, logits_processors=["other:One"])
    assert choose(plain) is choose(further) is Seeding.OWN
    assert plain.model_config.logits_processors == [PROCESSOR]
    assert further.model_config.logits_processors == ["other:One", PROCESSOR]


@pytest.mark.parametrize(
    ("asked", "seeding"),
    [
        (config(v2=True), Seeding.NATIVE),
        (config(v2=True, drafts=True), Seeding.NATIVE),
        (config(drafts=True), Seeding.COUNTED),
        (config(logprobs_mode="processed_logprobs"), Seeding.COUNTED),
        (config(runner_type="pooling"), Seeding.COUNTED),
    ],
)
def test_no_draws_of_ours_where_they_cannot_serve(asked, seeding):
    assert choose(asked) is seeding
    assert not asked.model_config.logits_processors


def test_native_seeds_do_not_change_with_what_exists_already():
    seeds = [arguments(Seeding.NATIVE, SamplingSpec(seed=5, top_k=3), n)["seed"] for n in (0, 1, 9)]
    assert len(set(seeds)) == 1
    given = arguments(Seeding.NATIVE, SamplingSpec(seed=5, top_k=3))
    assert (given["top_k"], given["top_p"]) == (3, 0.75)
    assert "extra_args" not in given


def test_our_draws_are_told_limits_and_the_first_position_and_vllm_limits_nothing():
    given = arguments(Seeding.OWN, SamplingSpec(seed=5, top_k=3), existing=4)
    draws = given["extra_args"][DRAWS]
    assert (draws["first"], draws["top_k"], draws["top_p"]) == (4, 3, 0.75)
    assert (given["top_k"], given["top_p"]) == (0, 1.0)
    assert "seed" not in given  # no generator of vLLM's own for the row
    again = arguments(Seeding.OWN, SamplingSpec(seed=5), existing=9)["extra_args"][DRAWS]
    assert again["seed"] == draws["seed"]


def test_choices_are_told_apart_by_the_seed_that_vllm_numbers():
    given = arguments(Seeding.OWN, SamplingSpec(seed=5, n=3))
    assert given["seed"] == given["extra_args"][DRAWS]["seed"]


def test_no_choice_of_a_seed_is_a_choice_of_another():
    keys = {arguments(Seeding.NATIVE, SamplingSpec(seed=s))["seed"] for s in range(-300, 300)}
    keys |= {
        arguments(Seeding.NATIVE, SamplingSpec(seed=s))["seed"]
        for s in (2**63 - 1, -(2**63), 2**62, 2**40)
    }
    assert len({key + index for key in keys for index in range(128)}) == 604 * 128
    assert all(0 <= key < 2**62 for key in keys)


def test_without_a_seed_nothing_is_said_of_draws():
    for seeding in Seeding:
        given = arguments(seeding, SamplingSpec(top_k=3))
        assert not {"seed", "extra_args"} & given.keys()
        assert (given["top_k"], given["top_p"]) == (3, 0.75)
