"""The real engine on an INT8 checkpoint that `anabranch quantize` made, and guessing ahead.

The engine that guesses also computes in small blocks and without a prefix cache: one start for
several settings. It runs in float32, where a step's other shape changes no likeliest token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.engine import Continuation, Engine, Finish, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.quantize.checkpoint import quantize
from services.local_engine.on_vllm.quantize.schemes import Scheme
from services.local_engine.on_vllm.tuning import Tuning
from tests.support.engines import MODEL, Answer, run_job, until_idle

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
    pytest.mark.vllm,
]

GUESSES = 4
LENGTH = 32
CAPITAL = "What is the capital of France?"
REPEATING = (
    "Repeat these words five times: red apple, green pear, blue plum, red apple, green pear."
)
SPECULATIVE = {
    "method": "ngram",
    "num_speculative_tokens": GUESSES,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 4,
}


def engine_of(model: Path, tuning: Tuning | None = None) -> VllmEngine:
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    options = VllmOptions(str(model), "m", max_num_seqs=8, max_model_len=512, kv_cache_gib=1)
    return VllmEngine(replace(options, tuning=tuning or Tuning()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain() -> AsyncIterator[dict[str, Answer]]:
    """What the model answers when nothing is guessed, by name."""
    engine = engine_of(MODEL)
    await engine.start()
    try:
        repeating = await prompt_of(engine, REPEATING)
        capital = await prompt_of(engine, CAPITAL)
        answers = {
            "capital": await run_job(engine, capital, greedy(40)),
            "repeating": await run_job(engine, repeating, greedy(LENGTH, ignore_eos=True)),
        }
    finally:
        await engine.close()
    yield answers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guessing(plain):
    engine = engine_of(MODEL, Tuning(speculative=SPECULATIVE, block_size=32, prefix_caching=False))
    await engine.start()
    yield engine
    await engine.close()


async def prompt_of(engine: Engine, text: str) -> list[int]:
    part = pb.ContentPart(text=text)
    return await engine.encode(
        pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER, content=[part])])
    )


def greedy(max_tokens: int, **more: object) -> SamplingSpec:
    return SamplingSpec(max_tokens=max_tokens, temperature=0.0, **more)  # type: ignore[arg-type]


async def test_an_int8_checkpoint_answers_sensibly(tmp_path):
    engine = engine_of(quantize(MODEL, tmp_path / "int8", Scheme.INT8).path)
    await engine.start()
    try:
        answer = await run_job(engine, await prompt_of(engine, CAPITAL), greedy(40))
    finally:
        await engine.close()
    assert "Paris" in answer.text()
    assert answer.finish() is Finish.STOP


async def test_greedy_answers_are_the_same_with_guesses_and_come_several_tokens_at_once(
    guessing, plain
):
    answer = await run_job(
        guessing, await prompt_of(guessing, REPEATING), greedy(LENGTH, ignore_eos=True)
    )
    assert answer.tokens() == plain["repeating"].tokens()
    assert answer.text() == plain["repeating"].text()
    sizes = [len(delta.token_ids) for delta in answer.deltas]
    assert 1 < max(sizes) <= GUESSES + 1
    position = 0
    for delta in answer.deltas:
        assert delta.first_token == position
        position += len(delta.token_ids)


async def test_bounds_hold_in_the_midst_of_a_guess(guessing, plain):
    prompt = await prompt_of(guessing, REPEATING)
    whole = plain["repeating"]
    for most in (9, 10, 11):
        answer = await run_job(guessing, prompt, greedy(most, ignore_eos=True))
        assert answer.tokens() == whole.tokens()[:most]
        assert (answer.finish(), answer.usage.completion) == (Finish.LENGTH, most)
    at = len(whole.text()) // 2
    stop = whole.text()[at : at + 5]
    answer = await run_job(guessing, prompt, greedy(LENGTH, ignore_eos=True, stop=(stop,)))
    assert answer.text() == whole.text()[: whole.text().index(stop)]
    assert (answer.finish(), answer.deltas[-1].matched_stop) == (Finish.STOP, stop)
    natural = await prompt_of(guessing, CAPITAL)
    least = plain["capital"].usage.completion + 3
    answer = await run_job(guessing, natural, greedy(least + 1, min_tokens=least))
    assert answer.usage.completion >= least


async def test_an_answer_that_was_begun_goes_on_with_guesses(guessing, plain):
    whole = plain["repeating"]
    before = Continuation(tuple(whole.tokens()[:11]))
    prompt = await prompt_of(guessing, REPEATING)
    rest = await run_job(
        guessing, prompt, greedy(LENGTH - 11, ignore_eos=True), continuation=before
    )
    assert rest.tokens() == whole.tokens()[11:]
    assert rest.deltas[0].first_token == 11


async def test_log_probabilities_come_for_every_token_of_a_step(guessing):
    prompt = await prompt_of(guessing, REPEATING)
    answer = await run_job(guessing, prompt, greedy(12, ignore_eos=True, logprobs=1))
    named = [row[0].token_id for delta in answer.deltas for row in delta.logprobs]
    assert named == answer.tokens()


async def test_the_load_counts_no_guess_as_a_prompt_and_ends_at_nothing(guessing):
    prompts = [await prompt_of(guessing, f"{REPEATING} {n}") for n in range(4)]
    await asyncio.gather(*(run_job(guessing, p, greedy(16, ignore_eos=True)) for p in prompts))
    await until_idle(guessing)
    load = guessing.load()
    assert (load.queued_prefill_tokens, load.context_tokens, load.kv_used_tokens) == (0, 0, 0)
    assert guessing.prefixes is None


async def test_without_a_prefix_cache_nothing_is_found_again(guessing):
    prompt = await guessing.encode_text("The river rises in the hills and runs to the sea. " * 12)
    for _ in range(2):
        answer = await run_job(guessing, prompt, greedy(2))
        assert answer.usage.cached_prompt == 0
