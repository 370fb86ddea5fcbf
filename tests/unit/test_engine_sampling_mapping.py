"""A request's wishes reach vLLM whole: what is given is passed, what is absent is the model's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine import wire
from services.local_engine.engine import (
    Constraint,
    ConstraintKind,
    Continuation,
    Delta,
    Finish,
    Job,
    SamplingSpec,
    TokenUsage,
)
from services.local_engine.on_vllm.options import VllmOptions, cpu_variables, process_variables
from services.local_engine.on_vllm.sampling import (
    candidates_of,
    constraint_arguments,
    finish_of,
    sampling_arguments,
)


def spec(**fields: object) -> SamplingSpec:
    return wire.sampling_of(pb.GenerateRequest(sampling=pb.Sampling(**fields)))  # type: ignore[arg-type]


def job(wanted: SamplingSpec, existing: int = 0, max_tokens: int = 10) -> Job:
    return Job("1", [1], wanted, max_tokens, Continuation(tuple(range(existing))))


def test_absent_scalars_are_left_to_the_model():
    arguments = sampling_arguments(job(spec()), {"temperature": 0.6}, detokenize=True)
    assert arguments["temperature"] == 0.6
    assert "top_p" not in arguments
    assert "seed" not in arguments
    assert "logprobs" not in arguments
    assert arguments["n"] == 1


def test_scalars_that_are_present_are_honoured_zero_included():
    given = {
        "temperature": 0.0, "top_p": 0.5, "top_k": -1, "min_p": 0.25, "presence_penalty": 0.0,
        "frequency_penalty": -1.5, "repetition_penalty": 1.25, "seed": 0, "n": 3, "min_tokens": 2,
        "ignore_eos": True, "stop": ["a", "b"],
    }  # fmt: skip
    arguments = sampling_arguments(
        job(spec(**given)), {"temperature": 0.6, "top_p": 0.9}, detokenize=True
    )
    assert {name: arguments[name] for name in given} == given


def test_one_more_logprob_is_asked_for_because_vllm_counts_the_sampled_token():
    for wanted, asked in ((0, 0), (1, 2), (20, 21)):
        assert (
            sampling_arguments(job(spec(logprobs=wanted)), {}, detokenize=True)["logprobs"] == asked
        )


def test_a_continuation_counts_towards_the_minimum_but_not_the_maximum():
    arguments = sampling_arguments(job(spec(min_tokens=8), existing=5), {}, detokenize=False)
    assert (arguments["min_tokens"], arguments["max_tokens"]) == (3, 10)
    done = sampling_arguments(job(spec(min_tokens=4), existing=5), {}, detokenize=False)
    assert done["min_tokens"] == 0


def test_a_resumed_answer_draws_from_another_seed():
    seeds = [
        sampling_arguments(job(spec(seed=5), existing=n), {}, detokenize=False)["seed"]
        for n in (0, 1, 2)
    ]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_after_a_resume_follows_from_seed_and_position_and_is_nobody_else_s():
    def seed_of(seed: int, existing: int) -> int:
        wanted = job(spec(seed=seed), existing=existing)
        return int(sampling_arguments(wanted, {}, detokenize=False)["seed"])

    pairs = [(seed, existing) for seed in range(20) for existing in range(50)]
    assert [seed_of(*pair) for pair in pairs] == [seed_of(*pair) for pair in pairs]
    assert len({seed_of(*pair) for pair in pairs}) == len(pairs)


def test_stop_strings_stay_here_when_the_text_is_made_here():
    assert "stop" not in sampling_arguments(job(spec(stop=["x"])), {}, detokenize=False)


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        (pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject()), {"json_object": True}),
        (pb.ResponseFormat(json_schema="{}"), {"json": "{}"}),
        (pb.ResponseFormat(regex="a+"), {"regex": "a+"}),
        (
            pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=["a", "b"])),
            {"grammar": 'root ::= "a" | "b"'},
        ),
        (pb.ResponseFormat(grammar="root ::= x"), {"grammar": "root ::= x"}),
    ],
)
def test_every_response_format_reaches_vllm(form, arguments):
    constraint = wire.sampling_of(pb.GenerateRequest(response_format=form)).constraint
    assert constraint is not None
    assert constraint_arguments(constraint) == arguments


def test_free_text_is_no_constraint():
    form = pb.ResponseFormat(text=pb.ResponseFormat.FreeText())
    assert wire.sampling_of(pb.GenerateRequest(response_format=form)).constraint is None


def test_a_constrained_answer_cannot_be_resumed():
    request = pb.GenerateRequest(continuation=pb.Continuation(text="x"))
    constrained = SamplingSpec(constraint=Constraint(ConstraintKind.REGEX, "a"))
    with pytest.raises(Fault) as refused:
        wire.continuation_of(request, constrained)
    assert refused.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert "response_format" in refused.value.metadata["feature"]


@pytest.mark.parametrize(
    ("prompt", "existing", "wanted", "resolved"),
    [(10, 0, 90, 90), (10, 0, None, 90), (10, 40, None, 50), (99, 0, 1, 1), (99, 0, None, 1)],
)
def test_max_tokens_is_what_is_asked_or_what_the_context_leaves(prompt, existing, wanted, resolved):
    assert (
        wire.resolve_max_tokens(
            wanted, prompt_tokens=prompt, existing_tokens=existing, context_length=100
        )
        == resolved
    )


@pytest.mark.parametrize(
    ("prompt", "existing", "wanted"), [(10, 0, 91), (100, 0, None), (60, 40, 1), (500, 0, 5)]
)
def test_what_does_not_fit_the_context_is_refused_with_the_numbers(prompt, existing, wanted):
    with pytest.raises(Fault) as refused:
        wire.resolve_max_tokens(
            wanted, prompt_tokens=prompt, existing_tokens=existing, context_length=100
        )
    assert refused.value.reason == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert refused.value.metadata == {
        "prompt_tokens": str(prompt + existing),
        "max_tokens": str(wanted or 1),
        "context_length": "100",
    }


def test_the_ends_that_vllm_knows():
    assert [finish_of(r) for r in (None, "stop", "length", "abort")] == [
        None,
        Finish.STOP,
        Finish.LENGTH,
        Finish.CANCELLED,
    ]
    with pytest.raises(ValueError, match="error"):
        finish_of("error")


@dataclass
class Entry:
    logprob: float
    decoded_token: str | None


def test_candidates_are_the_sampled_token_and_then_the_likeliest_others():
    entries = {7: Entry(-3.0, None), 1: Entry(-0.5, "a"), 2: Entry(-1.0, "b"), 3: Entry(-2.0, "c")}
    (row,) = candidates_of([7], [entries], 2, lambda token: f"<{token}>")
    assert [(c.token_id, c.text, c.logprob) for c in row] == [
        (7, "<7>", -3.0),
        (1, "a", -0.5),
        (2, "b", -1.0),
    ]
    assert candidates_of([7], [entries], None, str) == ()
    ((alone,),) = candidates_of([7], [entries], 0, str)
    assert alone.token_id == 7


def test_the_last_chunk_carries_end_and_usage():
    usage = TokenUsage(prompt=5, cached_prompt=4, completion=9)
    chunk = wire.chunk_of(
        Delta(1, 8, "x", [3], finish=Finish.STOP, matched_stop="END", usage=usage), "id"
    )
    assert (chunk.index, chunk.first_token, chunk.text, list(chunk.token_ids)) == (1, 8, "x", [3])
    assert (chunk.finish_reason, chunk.matched_stop) == (pb.FINISH_REASON_STOP, "END")
    assert chunk.usage.cached_prompt_tokens == 4
    assert chunk.usage.source == pb.Usage.SOURCE_PROVIDER
    assert chunk.request_id == "id"


def test_vllm_sends_nothing_about_this_installation(tmp_path):
    variables = process_variables(VllmOptions(model=str(tmp_path), name="m", kv_cache_gib=3))
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["VLLM_REGEX_COMPILATION_TIMEOUT_S"] == "1"
    assert "HF_HUB_OFFLINE" not in process_variables(VllmOptions(model="org/name", name="m"))
    assert cpu_variables(VllmOptions(model="m", name="m", cpu_threads=3))["OMP_NUM_THREADS"] == "3"
