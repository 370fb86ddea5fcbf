"""vLLM's parameters of requests: copies of checked ones are what they would be made anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.local_engine.engine import Constraint, ConstraintKind, Continuation, Job, SamplingSpec
from services.local_engine.on_vllm.request_params import RequestParams, refusals
from services.local_engine.on_vllm.seeding import Seeding

pytestmark = pytest.mark.vllm

SPEC = SamplingSpec(temperature=0.7, top_p=0.9, min_tokens=5, stop=("x",), logprobs=2)


def job(spec: SamplingSpec = SPEC, max_tokens: int = 9, existing: tuple[int, ...] = ()) -> Job:
    return Job("1", (1, 2), spec, max_tokens, Continuation(existing))


def used_by_vllm(params):
    """As vLLM completes the parameters that it is given."""
    own = params.clone()
    own.update_from_generation_config({"eos_token_id": [3, 4]}, 3)
    return own


def test_a_copy_is_what_a_job_s_own_would_be():
    known = RequestParams({"top_k": 20}, Seeding.OWN)
    for max_tokens in (9, 3, 40):
        for detokenize in (True, False):
            fresh = RequestParams({"top_k": 20}, Seeding.OWN)(
                job(max_tokens=max_tokens), detokenize
            )
            again = known(job(max_tokens=max_tokens), detokenize)
            assert again.min_tokens == min(5, max_tokens)
            assert used_by_vllm(again) == used_by_vllm(fresh)


def test_what_vllm_does_to_one_request_s_parameters_does_not_reach_the_next():
    params = RequestParams({}, Seeding.OWN)
    first = used_by_vllm(params(job(), True))
    first.max_tokens = 1
    second = params(job(), True)
    assert second.max_tokens == 9
    assert used_by_vllm(second).stop_token_ids == first.stop_token_ids == [4]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (job(replace(SPEC, seed=1)), job(replace(SPEC, seed=2))),
        (job(existing=(7,)), job(existing=(7, 8, 9))),
        (
            job(replace(SPEC, constraint=Constraint(ConstraintKind.REGEX, "a"))),
            job(replace(SPEC, constraint=Constraint(ConstraintKind.REGEX, "b"))),
        ),
        (job(replace(SPEC, temperature=0.1)), job(replace(SPEC, temperature=0.2))),
        (job(replace(SPEC, special_tokens=True)), job()),
    ],
)
def test_what_is_asked_differently_is_never_taken_for_the_same(one, other):
    params = RequestParams({}, Seeding.OWN)
    params(one, True)
    assert params(other, True) == RequestParams({}, Seeding.OWN)(other, True)
    assert params(other, True) != params(one, True)


def test_a_model_that_reasons_has_its_parameters_kept_too():
    params = RequestParams({}, Seeding.OWN)
    thinks = replace(SPEC, thinking={"enable_thinking": True})
    for spec in (thinks, thinks, replace(SPEC, thinking={"enable_thinking": False}), SPEC):
        assert params(job(spec), True) == RequestParams({}, Seeding.OWN)(job(SPEC), True)
    assert len(params._known) == 1


def test_what_vllm_refuses_is_refused_each_time():
    params = RequestParams({}, Seeding.OWN)
    for _ in range(2):
        with pytest.raises(refusals(), match="top_p"):
            params(job(replace(SPEC, top_p=7.0)), True)


def test_a_caller_with_ever_new_parameters_does_not_fill_the_memory():
    params = RequestParams({}, Seeding.OWN)
    for step in range(300):
        params(job(replace(SPEC, temperature=0.5 + step / 1000)), True)
    assert len(params._known) == 256
