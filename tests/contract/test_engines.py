"""What every Engine keeps to, run against the simulation and against vLLM with a real model."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixReader
from services.chassis.prompt_blocks import prompt_blocks
from services.local_engine.engine import Continuation, Engine, Finish, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.simulation.engine import SimEngine, SimOptions
from services.local_engine.simulation.model import SimLimits
from services.local_engine.step_model import StepModel
from tests.support.auth import until
from tests.support.engines import MODEL, RunningJob, run_job, run_request, until_idle

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sim", pytest.param("vllm", marks=pytest.mark.vllm)],
)
async def engine(request):
    chosen: Engine
    if request.param == "sim":
        # Steps of 1 ms: quick, but slow enough that an abort comes in the middle.
        options = SimOptions(pace=StepModel(1e-3, 0, 0, 0), limits=SimLimits(kv_tokens=3072))
        chosen = SimEngine(options)
    else:
        if not MODEL.is_dir():
            pytest.skip("no model: run tools/fetch_model.py")
        chosen = VllmEngine(
            VllmOptions(
                str(MODEL),
                "smollm2",
                max_num_seqs=32,
                max_model_len=1024,
                kv_cache_gib=1,
                num_gpu_blocks_override=24,  # of 128 tokens: a few long prompts fill it
            )
        )
    await chosen.start()
    yield chosen
    await chosen.close()


def greedy(max_tokens: int, **more: object) -> SamplingSpec:
    return SamplingSpec(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **more)  # type: ignore[arg-type]


async def prompt_of(engine: Engine, text: str = "Tell me a story about a river.") -> list[int]:
    return await engine.encode(
        pb.GenerateRequest(
            messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])]
        )
    )


async def test_tokens_come_in_order_and_the_usage_is_exact(engine):
    prompt = await prompt_of(engine)
    answer = await run_job(engine, prompt, greedy(20))
    position = 0
    for delta in answer.deltas:
        assert delta.first_token == position
        position += len(delta.token_ids)
    assert answer.finish() is Finish.LENGTH
    assert answer.text()
    assert (answer.usage.prompt, answer.usage.completion) == (len(prompt), 20)
    assert not answer.usage.partial
    assert position == 20


async def test_an_answer_may_end_by_itself(engine):
    prompt = await prompt_of(engine, "What is the capital of France?")
    answer = await run_job(engine, prompt, SamplingSpec(max_tokens=300, temperature=0.0))
    assert answer.finish() is Finish.STOP
    assert answer.usage.completion == len(answer.tokens()) < 300


async def test_min_tokens_holds_off_the_natural_end(engine):
    prompt = await prompt_of(engine, "What is the capital of France?")
    spec = SamplingSpec(max_tokens=300, temperature=0.0)
    natural = await run_job(engine, prompt, spec)
    wanted = natural.usage.completion + 3
    longer = await run_job(
        engine, prompt, SamplingSpec(max_tokens=wanted + 1, temperature=0.0, min_tokens=wanted)
    )
    assert longer.usage.completion >= wanted


async def test_a_stop_string_ends_the_answer_before_it(engine):
    prompt = await prompt_of(engine)
    whole = (await run_job(engine, prompt, greedy(24))).text()
    middle = len(whole) // 2
    stop = whole[middle : middle + 6]
    answer = await run_job(engine, prompt, greedy(24, stop=("never said", stop)))
    assert answer.finish() is Finish.STOP
    assert answer.deltas[-1].matched_stop == stop
    assert answer.text() == whole[: whole.index(stop)]
    assert answer.usage.completion == len(answer.tokens()) < 24


async def test_an_aborted_job_ends_at_once_and_frees_its_slot(engine):
    await until_idle(engine)
    job = RunningJob(engine, await prompt_of(engine), greedy(900))
    await job.until(tokens=3)
    assert engine.load().running == 1
    job.abort()
    answer = await job.result()
    assert answer.finish() is Finish.CANCELLED
    assert answer.usage.partial
    assert answer.usage.completion == len(answer.tokens()) < 900
    await until_idle(engine)
    assert engine.load().context_tokens == 0
    job.abort()


async def test_a_job_aborted_before_it_began_ends_too(engine):
    job = RunningJob(engine, await prompt_of(engine), greedy(50, n=2))
    job.abort()
    answer = await job.result()
    assert (answer.finish(0), answer.finish(1)) == (Finish.CANCELLED, Finish.CANCELLED)
    await until_idle(engine)


@pytest.mark.parametrize(("cut", "lag"), [(1, 0), (7, 0), (12, 3), (19, 5)])
async def test_a_resumed_answer_goes_on_with_the_same_tokens_and_text(engine, cut, lag):
    prompt = await prompt_of(engine)
    whole = await run_job(engine, prompt, greedy(20))
    tokens = whole.tokens()
    sent = "".join(d.text for d in whole.deltas if d.first_token < cut)
    sent = sent[: max(0, len(sent) - lag)]
    rest = await run_job(
        engine,
        prompt,
        greedy(20 - cut),
        continuation=Continuation(tuple(tokens[:cut]), sent),
    )
    assert rest.tokens() == tokens[cut:]
    assert sent + rest.text() == whole.text()
    assert rest.deltas[0].first_token == cut
    assert (rest.usage.prompt, rest.usage.completion) == (len(prompt), 20)


async def test_a_stop_string_across_the_seam_of_a_resumed_answer_is_found(engine):
    prompt = await prompt_of(engine)
    whole = await run_job(engine, prompt, greedy(20))
    cut = 10
    before = "".join(d.text for d in whole.deltas if d.first_token < cut)
    stop = whole.text()[len(before) - 2 : len(before) + 2]
    at = whole.text().index(stop)
    expected = whole.text()[:at]
    rest = await run_job(
        engine,
        prompt,
        greedy(10, stop=(stop,)),
        continuation=Continuation(tuple(whole.tokens()[:cut]), before[: min(at, len(before) - 3)]),
    )
    sent = before[: min(at, len(before) - 3)]
    if at == len(before) - 2:  # else the stop string occurs earlier as well
        assert rest.finish() is Finish.STOP
        assert sent + rest.text() == expected
    await until_idle(engine)


async def test_a_continuation_that_is_not_this_model_s_is_refused(engine):
    prompt = await prompt_of(engine)
    tokens = (await run_job(engine, prompt, greedy(4))).tokens()
    with pytest.raises(Fault) as refused:
        await run_job(
            engine, prompt, greedy(4), continuation=Continuation(tuple(tokens), "other words")
        )
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "continuation.text"
    assert engine.load().running == engine.load().waiting == 0


async def test_two_choices_are_numbered_and_counted_together(engine):
    prompt = await prompt_of(engine)
    answer = await run_job(engine, prompt, SamplingSpec(max_tokens=8, ignore_eos=True, n=2, seed=7))
    assert len(answer.tokens(0)) == len(answer.tokens(1)) == 8
    assert (answer.finish(0), answer.finish(1)) == (Finish.LENGTH, Finish.LENGTH)
    assert answer.usage.completion == 16


async def test_jobs_run_side_by_side(engine):
    prompts = [await prompt_of(engine, f"Count to {n}.") for n in range(8)]
    peak = 0

    def watch(_: object) -> None:
        nonlocal peak
        peak = max(peak, engine.load().running)

    jobs = [RunningJob(engine, p, greedy(16), on_delta=watch) for p in prompts]
    answers = await asyncio.gather(*(job.result() for job in jobs))
    assert [a.usage.completion for a in answers] == [16] * 8
    assert peak > 1
    await until_idle(engine)
    load = engine.load()
    assert load.output_tokens_per_second > 0
    assert load.step_time > 0
    assert load.prefill_tokens_per_step > 0
    assert load.kv_total_tokens > 0
    assert (load.queued_prefill_tokens, load.context_tokens, load.kv_used_tokens) == (0, 0, 0)


async def test_log_probabilities_name_the_token_and_then_its_alternatives(engine):
    prompt = await prompt_of(engine)
    answer = await run_job(engine, prompt, greedy(4, logprobs=3))
    tokens = answer.tokens()
    rows = [row for delta in answer.deltas for row in delta.logprobs]
    assert [row[0].token_id for row in rows] == tokens
    assert {len(row) for row in rows} == {4}
    for row in rows:
        alternatives = [c.logprob for c in row[1:]]
        assert alternatives == sorted(alternatives, reverse=True)
        assert max(c.logprob for c in row) <= 0


async def test_only_the_sampled_token_s_probability_when_no_alternative_is_wanted(engine):
    answer = await run_job(engine, await prompt_of(engine), greedy(2, logprobs=0))
    assert [len(row) for d in answer.deltas for row in d.logprobs] == [1, 1]


async def test_a_prompt_that_ends_inside_a_character_is_not_echoed(engine):
    prompt = await engine.encode_text("What follows? 日")
    answer = await run_job(engine, prompt[:-1], greedy(6))
    assert "follows" not in answer.text()
    assert len(answer.tokens()) == 6


@pytest.mark.parametrize("token", [-1, 10_000_000])
async def test_a_token_outside_the_vocabulary_is_refused(engine, token):
    with pytest.raises(Fault) as refused:
        await engine.encode(pb.GenerateRequest(prompt_token_ids=[5, token]))
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "prompt_token_ids"


async def test_a_continuation_outside_the_vocabulary_is_refused_and_ends_nothing_else(engine):
    prompt = await engine.encode_text("What is a river?")
    continued = Continuation(token_ids=(10_000_000,))
    with pytest.raises(Fault) as refused:
        await run_job(engine, prompt, greedy(4), continuation=continued)
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "continuation.token_ids"
    assert len((await run_job(engine, prompt, greedy(4))).tokens()) == 4


async def test_images_are_refused_by_name(engine):
    image = pb.ContentPart(image=pb.Image(data=b"x", media_type="image/png"))
    with pytest.raises(Fault) as refused:
        await engine.encode(
            pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER, content=[image])])
        )
    assert refused.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert refused.value.metadata["feature"] == "images"


def long_request(start: str) -> pb.GenerateRequest:
    """At least 500 tokens for either engine; seven of them overflow the cache."""
    return pb.GenerateRequest(prompt=f"{start} bako deku lomi fate. " * 56)


async def test_only_what_was_found_in_the_cache_counts_as_cached(engine):
    fresh = await run_request(engine, long_request("Counted"), greedy(4))
    again = await run_request(engine, long_request("Counted"), greedy(4))
    third = await run_request(engine, long_request("Counted"), greedy(4))
    assert fresh.usage.cached_prompt == 0
    assert fresh.usage.prompt / 2 < again.usage.cached_prompt < fresh.usage.prompt
    assert third.usage == again.usage


async def test_choices_that_find_what_their_first_has_computed_found_nothing(engine):
    spec = SamplingSpec(max_tokens=4, ignore_eos=True, n=2, seed=7)
    answer = await run_request(engine, long_request("Twofold"), spec)
    assert answer.usage.cached_prompt == 0
    answer = await run_request(engine, long_request("Twofold"), spec)
    assert answer.usage.cached_prompt > answer.usage.prompt / 2


async def test_a_resumed_answer_counts_as_cached_no_more_than_its_prompt(engine):
    prompt = await prompt_of(engine, "Tell me of the sea. " * 20)
    tokens = (await run_job(engine, prompt, greedy(200))).tokens()
    continuation = Continuation(tuple(tokens[:190]))
    rest = await run_job(engine, prompt, greedy(10), continuation=continuation)
    assert 0 < rest.usage.cached_prompt <= len(prompt)


async def test_the_names_of_a_prompt_are_told_while_the_cache_holds_it_and_no_longer(engine):
    asked = long_request("Remembered")
    names = prompt_blocks(asked)
    reader, heard = PrefixReader(engine.prefixes), set()

    async def hears(condition) -> None:
        async def holds() -> bool:
            while (events := reader.next()) is not None:
                if events.cleared:
                    heard.clear()
                heard.update(events.stored)
                heard.difference_update(events.removed)
            return condition(heard)

        await until(holds, 20.0)

    await hears(lambda heard: not heard & set(names))
    fresh = await run_request(engine, asked, greedy(2))
    # All names but of the prompt's end, which fills no block of the engine's.
    await hears(lambda heard: heard.issuperset(names[:-2]))
    again = await run_request(engine, asked, greedy(2))
    held = len(heard & set(names)) / len(names)
    assert held == pytest.approx(again.usage.cached_prompt / fresh.usage.prompt, abs=0.15)
    for number in range(7):
        await run_request(engine, long_request(f"Other {number}"), greedy(2))
    await hears(lambda heard: not heard & set(names))
    assert heard == set(engine.prefixes.held())
    late = await run_request(engine, asked, greedy(2))
    assert late.usage.cached_prompt == 0


async def test_what_the_cache_holds_is_not_queued(engine):
    asked = long_request("Queued")
    prompt = await engine.encode(asked)
    fresh = RunningJob(engine, prompt, greedy(2), asked=asked)
    assert engine.load().queued_prefill_tokens == len(prompt)
    await fresh.result()

    async def known() -> bool:
        return set(prompt_blocks(asked)[:-2]) <= set(engine.prefixes.held())

    await until(known, 20.0)
    again = RunningJob(engine, prompt, greedy(2), asked=asked)
    assert engine.load().queued_prefill_tokens < len(prompt) / 2
    await again.result()


async def test_how_long_steps_should_take_is_told_once_it_is_known(engine):
    prompt = await prompt_of(engine)
    await run_job(engine, prompt, greedy(60))
    load = engine.load()
    assert load.step_model is not None
    parts = (load.step_model.base, load.step_model.prefill, load.step_model.decode)
    assert min(*parts, load.step_model.context) >= 0
    assert 0 < load.step_model.seconds(0, 1, len(prompt)) < 2
    assert 0.1 <= load.step_time_ratio <= 10
