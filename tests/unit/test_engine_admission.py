"""What may wait for an engine: the size of a request, and of what waits already."""

from __future__ import annotations

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine import admission, forms
from services.local_engine.engine import (
    Constraint,
    ConstraintKind,
    EngineLoad,
    ModelFacts,
    SamplingSpec,
)

FACTS = ModelFacts("m", "m", context_length=100, max_running=8, capabilities=(), token_bytes=4)


def chat(*texts: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=t)]) for t in texts]
    )


def reason_of(refused: pytest.ExceptionInfo[Fault]) -> int:
    return refused.value.reason


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(prompt="x" * 400),
        pb.GenerateRequest(prompt="é" * 200),
        pb.GenerateRequest(prompt="x" * 300, continuation=pb.Continuation(text="x" * 100)),
        chat("short", "x" * 400),
    ],
)
def test_a_text_whose_bytes_alone_exceed_the_context_is_refused(request_):
    with pytest.raises(Fault) as refused:
        admission.check_bytes(request_, FACTS)
    assert reason_of(refused) == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert refused.value.metadata["prompt_tokens"] == "100"


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(prompt="x" * 396),
        pb.GenerateRequest(prompt_token_ids=[1] * 400),
        # A template may leave out earlier turns, and the white space around the last.
        chat("x" * 400, "short"),
        chat(" " * 400 + "short"),
        # Its token ids are counted exactly, later.
        pb.GenerateRequest(
            prompt="x", continuation=pb.Continuation(text="x" * 400, token_ids=[1, 2])
        ),
    ],
)
def test_a_text_that_may_fit_goes_on_to_be_counted(request_):
    admission.check_bytes(request_, FACTS)


def test_nothing_is_refused_by_bytes_where_tokens_have_no_known_length():
    unknown = ModelFacts("m", "m", context_length=100, max_running=8, capabilities=())
    admission.check_bytes(pb.GenerateRequest(prompt="x" * 10_000), unknown)


def test_choices_that_cannot_be_held_at_once_are_refused():
    with pytest.raises(Fault) as refused:
        admission.within_cache(300, wanted=300, n=4, prompt_tokens=10, kv_tokens=1000)
    assert reason_of(refused) == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert "KV cache holds 1000" in str(refused.value)


def test_a_bound_that_nobody_gave_is_lowered_until_all_choices_fit():
    assert admission.within_cache(900, wanted=None, n=4, prompt_tokens=10, kv_tokens=1000) == 247
    assert admission.within_cache(200, wanted=None, n=4, prompt_tokens=10, kv_tokens=1000) == 200


def test_one_choice_and_an_unknown_cache_are_left_alone():
    assert admission.within_cache(900, wanted=900, n=1, prompt_tokens=500, kv_tokens=1000) == 900
    assert admission.within_cache(900, wanted=900, n=8, prompt_tokens=500, kv_tokens=0) == 900


def test_tokens_beyond_the_bound_are_told_when_there_will_be_room():
    load = EngineLoad(
        queued_prefill_tokens=900, prefill_tokens_per_step=100.0, step_time=0.5, kv_total_tokens=1
    )
    with pytest.raises(Fault) as refused:
        admission.check_queue(load, 300, 1000)
    assert reason_of(refused) == errors_pb2.ERROR_REASON_OVERLOADED
    assert refused.value.retry_after == pytest.approx(1.0)  # 200 tokens at 200 a second
    with pytest.raises(Fault) as later:
        admission.check_queue(load, 1100, 1000)
    assert later.value.retry_after == pytest.approx(5.0)


def test_without_a_measured_pace_the_retry_is_a_guess_within_bounds():
    with pytest.raises(Fault) as refused:
        admission.check_queue(EngineLoad(queued_prefill_tokens=900), 300, 1000)
    assert refused.value.retry_after == 1.0
    slow = EngineLoad(queued_prefill_tokens=900, prefill_tokens_per_step=1e-3, step_time=1.0)
    with pytest.raises(Fault) as capped:
        admission.check_queue(slow, 300, 1000)
    assert capped.value.retry_after == 60.0


def test_a_prompt_of_any_length_is_taken_when_none_waits_or_none_is_counted():
    admission.check_queue(EngineLoad(), 10_000, 1000)
    admission.check_queue(EngineLoad(queued_prefill_tokens=900), 100, 1000)
    admission.check_queue(EngineLoad(queued_prefill_tokens=10**9), 10**9, 0)


@pytest.mark.parametrize("field", ["min_tokens", "ignore_eos"])
def test_what_keeps_an_answer_from_ending_cannot_be_combined_with_a_form(field):
    constraint = Constraint(ConstraintKind.JSON_OBJECT)
    spec = SamplingSpec(constraint=constraint, **{field: 1})  # type: ignore[arg-type]
    with pytest.raises(Fault) as refused:
        forms.check_combination(spec)
    assert [v.field for v in refused.value.violations] == [f"sampling.{field}"]
    forms.check_combination(SamplingSpec(constraint=constraint, stop=("x",), n=2))
    forms.check_combination(SamplingSpec(min_tokens=1, ignore_eos=True))
