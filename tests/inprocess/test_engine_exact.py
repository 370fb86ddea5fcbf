"""The service's answers are vLLM's own, token by token, whichever way they are asked for."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import prometheus_client
import pytest
import pytest_asyncio

from anabranch.v1 import generation_pb2 as pb
from tests.support.engines import MODEL
from tests.support.exact import NAME, Said, Scene, scene
from tests.support.waiting import BOUND_S

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

_FRANCE = "What is the capital of France?"
_RIVER = "The river runs to the sea, and the sea"
WAYS = [
    f"{whom} {rpc}"
    for whom in ("direct", "routed")
    for rpc in ("Generate", "StreamGenerate", "Session", "client")
]
_MANY = [f"{_RIVER[: 10 + n]} number {n}" for n in range(24)]
CASES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": _RIVER, "params": {"max_tokens": 24, "ignore_eos": True}},
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name three rivers."},
        ],
        "params": {"max_tokens": 24},
    },
    "prompt_token_ids": {"prompt_token_ids": [504, 3575, 253], "params": {"max_tokens": 16}},
    "characters of several tokens": {
        "prompt": "Repeat: 日本語 🙂 日本語 🙂 日本語 🙂",
        "params": {"max_tokens": 32, "ignore_eos": True},
    },
    "two choices": {  # vLLM has only one where it is told to take the likeliest token
        "prompt": _RIVER,
        "params": {"max_tokens": 8, "n": 2, "temperature": 1.0, "top_k": 1},
    },
    "logprobs": {"prompt": _RIVER, "params": {"max_tokens": 6, "logprobs": 3}},
    "stop": {"prompt": _RIVER, "stop_from": "prompt", "params": {"max_tokens": 24}},
    "its own end": {
        "messages": [{"role": "user", "content": _FRANCE}],
        "params": {"max_tokens": 64},
    },
    "min_tokens": {
        "messages": [{"role": "user", "content": _FRANCE}],
        "params": {"max_tokens": 48, "min_tokens": 40},
    },
    "ignore_eos": {
        "messages": [{"role": "user", "content": _FRANCE}],
        "params": {"max_tokens": 40, "ignore_eos": True},
    },
    "penalties": {
        "prompt": _RIVER,
        "params": {
            "max_tokens": 24,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
        },
    },
    **{
        f"many {number}": {"prompt": prompt, "params": {"max_tokens": 12 + number % 5}}
        for number, prompt in enumerate(_MANY)
    },
}
_FINISH = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    async with scene(tmp_path_factory.mktemp("exact"), CASES) as started:
        yield started


def request_of(case: dict[str, Any], stop: str = "") -> pb.GenerateRequest:
    roles = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER}
    sampling = pb.Sampling(**{"temperature": 0.0} | case["params"])
    if stop:
        sampling.stop.extend(["never said", stop])
    return pb.GenerateRequest(
        model=NAME,
        prompt=case.get("prompt", ""),
        prompt_token_ids=case.get("prompt_token_ids", ()),
        messages=[
            pb.Message(role=roles[turn["role"]], content=[pb.ContentPart(text=turn["content"])])
            for turn in case.get("messages", ())
        ],
        sampling=sampling,
    )


def check(said: Said, expected: dict[str, Any], name: str) -> None:
    assert said.tokens == expected["tokens"], name
    assert said.texts == expected["texts"], name
    assert said.finish == [_FINISH[reason] for reason in expected["finish"]], name


@pytest.mark.parametrize("way", WAYS)
async def test_every_answer_is_that_of_vllm_itself(running: Scene, way: str):
    cases = {name: case for name, case in CASES.items() if not name.startswith("many")}
    offline = [running.offline[name] for name in cases]
    answers = await asyncio.gather(
        *(
            running.ask(way, request_of(case, expected["stop"]))
            for case, expected in zip(cases.values(), offline, strict=True)
        )
    )
    for name, said, expected in zip(cases, answers, offline, strict=True):
        check(said, expected, name)
        if not way.endswith("client"):
            assert said.usage.prompt_tokens == len(expected["prompt"]), name
            assert said.usage.completion_tokens == sum(map(len, expected["tokens"])), name
            assert said.stop == expected["stop"], name
            for rows, wanted in zip(said.logprobs, expected["logprobs"], strict=True):
                check_logprobs(rows, wanted)


def check_logprobs(rows: list[pb.TokenLogprobs], wanted: list[dict[str, float]]) -> None:
    """The contract names the sampled token first, then `logprobs` others; vLLM mixes them."""
    assert len(rows) == len(wanted)
    for row, entries in zip(rows, wanted, strict=True):
        got = {str(one.token_id): one.logprob for one in row.candidates}
        assert set(entries) <= set(got)
        for token_id, logprob in entries.items():
            assert got[token_id] == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("whom", ["direct", "routed"])
async def test_many_at_once_are_each_as_if_alone(running: Scene, whom: str):
    names = [name for name in CASES if name.startswith("many")]
    stub = running.direct if whom == "direct" else running.routed
    short = running.short
    answers = await running.session(stub, [request_of(CASES[name]) for name in names])
    for name, said in zip(names, answers, strict=True):
        check(said, running.offline[name], name)
    # All but the first and the last of each.
    assert running.short - short >= sum(len(a.tokens[0]) for a in answers) - 2 * len(answers)


@pytest.mark.parametrize("cut", [1, 7, 16])
@pytest.mark.parametrize("way", ["direct Session", "routed StreamGenerate"])
async def test_a_continued_answer_ends_as_the_whole_one(running: Scene, way: str, cut: int):
    whole = running.offline["prompt"]
    tokens = whole["tokens"][0]
    request = request_of(CASES["prompt"])
    request.sampling.max_tokens = len(tokens) - cut
    request.continuation.token_ids.extend(tokens[:cut])
    said = await running.ask(way, request)
    assert said.tokens == [tokens[cut:]]
    assert whole["texts"][0].endswith(said.texts[0])
    assert said.usage.completion_tokens == len(tokens)


async def test_a_seed_repeats_an_answer_and_choices_differ(running: Scene):
    sampled = {"prompt": _RIVER, "params": {"temperature": 1.0, "max_tokens": 16, "seed": 11}}
    first, again = [await running.ask("direct Session", request_of(sampled)) for _ in range(2)]
    assert first.tokens == again.tokens
    sampled["params"]["seed"] = 12
    assert (await running.ask("routed Session", request_of(sampled))).tokens != first.tokens
    sampled["params"] |= {"n": 3, "seed": 11}
    choices = (await running.ask("direct Session", request_of(sampled))).tokens
    assert len({tuple(tokens) for tokens in choices}) == 3


def _any_request(draw: random.Random) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=draw.randint(1, 20), seed=draw.randint(0, 2**31))
    sampling.temperature = draw.choice([0.0, 0.5, 1.0, 1.8])
    for name, low, high in (
        *(("top_p", 0.2, 1.0), ("min_p", 0.0, 0.2), ("repetition_penalty", 0.8, 1.4)),
        *(("presence_penalty", -1.0, 1.0), ("frequency_penalty", -1.0, 1.0)),
    ):
        if draw.random() < 0.3:
            setattr(sampling, name, draw.uniform(low, high))
    if draw.random() < 0.3:
        sampling.top_k = draw.randint(1, 200)
    sampling.ignore_eos = draw.random() < 0.5
    sampling.min_tokens = draw.choice([0, 0, draw.randint(0, sampling.max_tokens)])
    if sampling.temperature and draw.random() < 0.2:
        sampling.n = 2
    if draw.random() < 0.2:
        sampling.stop.extend(draw.sample([" the", "a", "\n", "e s", "é", "."], 2))
    if draw.random() < 0.1:
        sampling.logprobs = draw.randint(0, 4)
    prompt = [draw.randint(0, 49_151) for _ in range(draw.randint(1, 12))]
    return pb.GenerateRequest(model=NAME, prompt_token_ids=prompt, sampling=sampling)


async def test_the_short_way_says_what_vllms_own_does_whatever_is_asked(running: Scene):
    draw = random.Random(20)
    requests = [_any_request(draw) for _ in range(60)]
    before = running.short
    short = await running.session(running.direct, requests)
    taken = running.short - before
    undo = running.allow(short=False)
    try:
        own = await running.session(running.direct, requests)
    finally:
        undo()
    assert taken > 200
    assert running.short - before == taken
    for request, one, other in zip(requests, short, own, strict=True):
        assert (one.tokens, one.texts) == (other.tokens, other.texts), request
        assert (one.finish, one.stop) == (other.finish, other.stop)
        assert one.usage.completion_tokens == other.usage.completion_tokens


async def test_an_aborted_request_gives_its_memory_back(running: Scene):
    engine, used = running.engine, lambda: max(r.kv_usage for r in engine._recorders)
    stays = asyncio.create_task(running.ask("direct Session", _long(8, 400)))
    async with asyncio.timeout(BOUND_S):
        while not engine.load().running:
            await asyncio.sleep(0.01)
    before = used()
    leaves = asyncio.create_task(running.ask("direct StreamGenerate", _long(500, 400)))
    size = 400 / engine.load().kv_total_tokens
    async with asyncio.timeout(BOUND_S):
        while used() < before + size:
            await asyncio.sleep(0.01)
        leaves.cancel()
        while used() >= before + size:
            await asyncio.sleep(0.01)
    stays.cancel()
    async with asyncio.timeout(BOUND_S):
        while engine.load().running or engine.load().kv_used_tokens:
            await asyncio.sleep(0.01)


def _long(prompt: int, tokens: int) -> pb.GenerateRequest:
    case = {
        "prompt_token_ids": [500 + n for n in range(prompt)],
        "params": {"max_tokens": tokens, "ignore_eos": True},
    }
    return request_of(case)


async def test_vllms_own_metrics_count_what_takes_the_short_way(running: Scene):
    def counted() -> tuple[float, ...]:
        labels = {"model_name": NAME, "engine": "0"}
        read = prometheus_client.REGISTRY.get_sample_value
        return tuple(
            read(f"vllm:{name}", labels) or 0.0
            for name in (
                *("generation_tokens_total", "inter_token_latency_seconds_count"),
                *("time_to_first_token_seconds_count", "request_generation_tokens_sum"),
            )
        )

    before = counted()
    said = await running.ask("direct Session", request_of(CASES["prompt"]))
    tokens = len(said.tokens[0])
    grown = tuple(now - then for now, then in zip(counted(), before, strict=True))
    assert grown == (tokens, tokens - 1, 1, tokens)
