"""The local engine on a GPU: the tokens of vLLM itself, forms, ends, and what is free afterwards.

Sums in bfloat16 depend on how many rows are computed at once, so answers are compared where the
same is computed on both sides, or up to the first token that was nearly another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from anabranch.v1 import generation_pb2 as pb
from bench.engine import session_load
from bench.engine.flight import CancelOrder
from bench.engine.prompts import prompts
from tests.support.engines import MODEL
from tests.support.gpu_engines import ARGUMENTS, NAME, START_S, Caller, engine, greedy

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TOKENS = 48
PROMPTS = prompts("gpu", 6, 40, 49_000)
CLEAR = 0.1
"""Difference of two log-probabilities beyond which rounding does not change their order."""

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "people": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def offline() -> list[list[int]]:
    """The answers of vllm.LLM, which is gone again."""
    order = {
        "arguments": {**ARGUMENTS, "model": str(MODEL)},
        "prompts": PROMPTS,
        "tokens": TOKENS,
    }
    done = subprocess.run(
        (sys.executable, "-m", "tests.support.offline_vllm"),
        cwd=ROOT,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[list[int]] = json.loads(done.stdout)["answers"]
    return answers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(offline, tmp_path_factory):
    async with engine(tmp_path_factory.mktemp("engine")) as running:
        yield running


def ids(prompt: list[int], sampling: pb.Sampling, **more: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=NAME, prompt_token_ids=prompt, sampling=sampling, **more)  # type: ignore[arg-type]


def asked(text: str, sampling: pb.Sampling, **more: object) -> pb.GenerateRequest:
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.GenerateRequest(model=NAME, messages=[message], sampling=sampling, **more)  # type: ignore[arg-type]


async def test_a_session_brings_the_very_tokens_of_offline_vllm(caller, offline):
    found = [(await caller.session(ids(prompt, greedy(TOKENS))))[0] for prompt in PROMPTS]
    assert [answer.error for answer in found] == [""] * len(PROMPTS)
    assert [answer.tokens for answer in found] == offline


async def test_the_model_answers_sensibly(caller):
    answer = await caller.generate(
        asked("What is the capital of France?", pb.Sampling(max_tokens=32, temperature=0.0))
    )
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP


async def test_many_at_once_are_numbered_without_a_gap(caller):
    answers = await caller.session(
        *(ids(prompt, greedy(TOKENS)) for prompt in prompts("many", 64, 30, 49_000))
    )
    for answer in answers:
        position = 0
        for chunk in answer.chunks:
            if chunk.token_ids:
                assert chunk.first_token == position
                position += len(chunk.token_ids)
        assert position == TOKENS
        assert answer.chunks[-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_structured_output_parses(caller):
    """Every answer of this schema ends by itself: at most 60 characters, without white space."""
    schema = pb.ResponseFormat(json_schema=json.dumps(CITY))
    answers = await caller.session(
        *(
            asked(f"Name a large city of {country}.", greedy_end(128), response_format=schema)
            for country in ("France", "Japan", "Brazil")
        )
    )
    for answer in answers:
        found = f"error {answer.error!r}, text {answer.text!r}, end {answer.finish}"
        assert not answer.error, found
        assert answer.finish == "FINISH_REASON_STOP", found
        try:
            city = json.loads(answer.text)
        except ValueError:
            pytest.fail(found)
        assert isinstance(city["city"], str), found
        assert isinstance(city["people"], int), found


def greedy_end(tokens: int) -> pb.Sampling:
    return pb.Sampling(max_tokens=tokens, temperature=0.0)


@pytest.mark.parametrize("cut", [1, 11, 30])
async def test_a_resumed_answer_goes_on_exactly(caller, cut):
    question = "Tell me a story about a river."
    (whole,) = await caller.session(asked(question, greedy(TOKENS, logprobs=2)))
    sent = "".join(chunk.text for chunk in whole.chunks if chunk.first_token < cut)
    (rest,) = await caller.session(
        asked(
            question,
            greedy(TOKENS - cut),
            continuation=pb.Continuation(token_ids=whole.tokens[:cut], text=sent),
        )
    )
    assert not rest.error
    assert rest.chunks[0].first_token == cut
    until = clear_until(whole, cut)
    assert until > cut, "this cut shows nothing: take another"
    assert rest.tokens[: until - cut] == whole.tokens[cut:until]
    if until == TOKENS:
        assert sent + rest.text == whole.text
    assert len(rest.tokens) == TOKENS - cut


def clear_until(whole, start: int) -> int:
    """Position of the first token from `start` on that was nearly another one, or the end."""
    margins = [
        position.candidates[0].logprob - position.candidates[1].logprob
        for chunk in whole.chunks
        for position in chunk.logprobs
    ]
    assert len(margins) == TOKENS
    return next((at for at in range(start, TOKENS) if abs(margins[at]) < CLEAR), TOKENS)


async def test_cancelled_streams_leave_their_slots_and_their_cache(caller: Caller):
    # One more than there are slots; raises TimeoutError where no slot or no cache becomes free.
    found = await session_load.cancel(
        CancelOrder(
            form="session",
            model=NAME,
            tokens=900,
            prompts=prompts("cancel", ARGUMENTS["max_num_seqs"] + 1, 40, 49_000),
            target=caller.target,
            authorization=caller.authorization,
        )
    )
    assert found["slot_ms"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"kv_cache_dtype": "fp8"}, id="fp8-kv-cache"),
        pytest.param({"quantization": "fp8"}, id="fp8-weights"),
    ],
)
async def test_an_engine_of_less_precision_loads_and_answers(arguments, caller, tmp_path):
    # The first one, idle beside it, leaves room enough.
    async with engine(tmp_path, **arguments) as lesser:
        answer = await lesser.generate(
            asked("What is the capital of France?", pb.Sampling(max_tokens=48, temperature=0.0))
        )
    assert answer.usage.completion_tokens > 0
    assert answer.choices[0].text.strip()
