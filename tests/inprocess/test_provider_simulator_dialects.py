"""What the official SDKs make of the provider simulator, in each dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import anthropic
import botocore.exceptions
import ollama
import openai
import pytest
from google.genai import errors as gemini_errors
from google.genai import types

from tests.support import official
from tests.support.official import ASK, AWS_KEY, Question
from tests.support.provider import KEY, Provider, simulator
from tools.provider_simulator.answers import LABEL, reply

DIALECTS = sorted(ASK)
FINISHES = {
    "openai_chat": {"stop": "stop", "length": "length", "tools": "tool_calls", "cut": "stop"},
    "anthropic": {
        "stop": "end_turn",
        "length": "max_tokens",
        "tools": "tool_use",
        "cut": "stop_sequence",
    },
    "gemini": {"stop": "STOP", "length": "MAX_TOKENS", "tools": "STOP", "cut": "STOP"},
    "ollama": {"stop": "stop", "length": "length", "tools": "stop", "cut": "stop"},
    "bedrock_converse": {
        "stop": "end_turn",
        "length": "max_tokens",
        "tools": "tool_use",
        "cut": "stop_sequence",
    },
}
EXCLUDES_CACHED = ("anthropic", "bedrock_converse")
REASONING = "thinking as a simulator does: not at all."


def key_of(dialect: str) -> str:
    return AWS_KEY if dialect == "bedrock_converse" else KEY


def expected_text(text: str) -> str:
    body = {"model": "sim-chat", "messages": [{"role": "user", "content": text}]}
    return "".join(reply(body).answers[0].text)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with simulator(KEY, AWS_KEY) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
class TestAnswers:
    async def test_text_finish_and_usage(self, provider, dialect, stream):
        prompt = " ".join(["word"] * 100)
        said = await ASK[dialect](provider.url, key_of(dialect), Question(prompt, stream=stream))
        assert said.text == expected_text(prompt)
        assert said.text.startswith(LABEL)
        assert said.finish == FINISHES[dialect]["stop"]
        assert said.completion == 18
        assert said.prompt == (50 if dialect in EXCLUDES_CACHED else 100)
        if dialect != "ollama":
            assert said.cached == 50
        assert not said.reasoning
        assert not said.calls

    async def test_parallel_calls(self, provider, dialect, stream):
        question = Question(
            "call weather and call clock", tools=("weather", "clock", "never"), stream=stream
        )
        said = await ASK[dialect](provider.url, key_of(dialect), question)
        asked = {"asked": "call weather and call clock"}
        assert said.calls == [("weather", asked), ("clock", asked)]
        assert said.text == f"{LABEL} calling"
        assert said.finish == FINISHES[dialect]["tools"]

    async def test_call_without_arguments(self, provider, dialect, stream):
        question = Question("call clock without arguments", tools=("clock",), stream=stream)
        said = await ASK[dialect](provider.url, key_of(dialect), question)
        assert said.calls == [("clock", {})]

    async def test_reasoning_and_its_seal(self, provider, dialect, stream):
        question = Question(model="sim-reasoner", stream=stream)
        said = await ASK[dialect](provider.url, key_of(dialect), question)
        assert said.reasoning == REASONING
        assert said.text == expected_text("hello")
        assert said.completion == 18 + 8
        assert bool(said.sealed) == (dialect not in ("openai_chat", "ollama"))

    async def test_length_limit_and_stop_sequence(self, provider, dialect, stream):
        question = Question(max_tokens=4, stream=stream)
        said = await ASK[dialect](provider.url, key_of(dialect), question)
        assert (said.finish, said.completion) == (FINISHES[dialect]["length"], 4)
        word = expected_text("hello").split()[5]
        question = Question(stop=word, stream=stream)
        said = await ASK[dialect](provider.url, key_of(dialect), question)
        assert said.text == expected_text("hello").split(word)[0]
        assert said.finish == FINISHES[dialect]["cut"]


ERRORS = {
    "openai_chat": {
        401: openai.AuthenticationError,
        400: openai.BadRequestError,
        404: openai.NotFoundError,
        429: openai.RateLimitError,
        500: openai.InternalServerError,
    },
    "anthropic": {
        401: anthropic.AuthenticationError,
        400: anthropic.BadRequestError,
        404: anthropic.NotFoundError,
        429: anthropic.RateLimitError,
        500: anthropic.InternalServerError,
    },
    "gemini": {
        401: gemini_errors.ClientError,
        400: gemini_errors.ClientError,
        404: gemini_errors.ClientError,
        429: gemini_errors.ClientError,
        500: gemini_errors.ServerError,
    },
    "ollama": dict.fromkeys((401, 400, 404, 429, 500), ollama.ResponseError),
    "bedrock_converse": dict.fromkeys((401, 400, 404, 429, 500), botocore.exceptions.ClientError),
}
BEDROCK_KINDS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    500: "InternalServerException",
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_refusals_raise_the_sdks_own_exceptions(provider, dialect, stream):
    for status in (400, 404, 429, 500):
        await provider.fault("4xx", status=status, message="as told")
        with pytest.raises(ERRORS[dialect][status]) as caught:
            await ASK[dialect](provider.url, key_of(dialect), Question(stream=stream))
        assert "as told" in str(caught.value)
        if dialect == "bedrock_converse":
            assert caught.value.response["Error"]["Code"] == BEDROCK_KINDS[status]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_unknown_keys_are_refused_in_the_dialects_own_form(provider, dialect):
    wrong = "AKIDOTHER:secret" if dialect == "bedrock_converse" else "wrong-key"
    with pytest.raises(ERRORS[dialect][401]) as caught:
        await ASK[dialect](provider.url, wrong, Question())
    assert (await provider.state())["requests"] == []
    if dialect == "gemini":
        assert caught.value.code == 400
        assert "API_KEY_INVALID" in str(caught.value)


async def test_signature_with_another_secret_is_refused(provider):
    identity = AWS_KEY.split(":", maxsplit=1)[0]
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        await ASK["bedrock_converse"](provider.url, f"{identity}:another", Question())
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"


async def test_signature_holds_for_models_whose_names_need_encoding(provider):
    model = "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.sim-v1:0"
    said = await ASK["bedrock_converse"](provider.url, AWS_KEY, Question(model=model))
    assert said.text == expected_text("hello")


INPUTS = ["one", "two words"]


async def embed_openai(url: str, dimension: int | None) -> list[list[float]]:
    async with official.openai_client(url, KEY) as client:
        more = {} if dimension is None else {"dimensions": dimension}
        found = await client.embeddings.create(model="sim", input=INPUTS, **more)
        assert found.usage.prompt_tokens == 3
        return [one.embedding for one in found.data]


async def embed_gemini(url: str, dimension: int | None) -> list[list[float]]:
    config = types.EmbedContentConfig(output_dimensionality=dimension)
    models = official.gemini_client(url, KEY).aio.models
    found = await models.embed_content(model="gemini-embedding-001", contents=INPUTS, config=config)
    return [one.values for one in found.embeddings]


async def embed_ollama(url: str, dimension: int | None) -> list[list[float]]:
    client = official.ollama_client(url, "")
    found = await client.embed(model="sim", input=INPUTS, dimensions=dimension)
    assert found.prompt_eval_count == 3
    return [list(one) for one in found.embeddings]


async def embed_bedrock(url: str, dimension: int | None) -> list[list[float]]:
    def now() -> list[list[float]]:
        client = official.bedrock_client(url, AWS_KEY)
        found = []
        for text in INPUTS:
            body = {"inputText": text} | ({"dimensions": dimension} if dimension else {})
            answer = client.invoke_model(modelId="amazon.titan", body=json.dumps(body))
            found.append(json.load(answer["body"])["embedding"])
        body = {"texts": INPUTS, "input_type": "search_document"}
        body |= {"output_dimension": dimension} if dimension else {}
        answer = client.invoke_model(modelId="cohere.embed", body=json.dumps(body))
        assert json.load(answer["body"])["embeddings"] == found
        return found

    return await asyncio.to_thread(now)


@pytest.mark.parametrize(
    "embed", [embed_openai, embed_gemini, embed_ollama, embed_bedrock], ids=lambda f: f.__name__
)
async def test_embeddings_are_of_unit_length_and_of_the_asked_dimension(provider, embed):
    found = await embed(provider.url, None)
    again = await embed(provider.url, None)
    assert found == again
    assert [len(one) for one in found] == [8, 8]
    assert [len(one) for one in await embed(provider.url, 20)] == [20, 20]
    for one in found:
        assert sum(x * x for x in one) == pytest.approx(1, abs=1e-6)
    assert found[0] != found[1]


async def test_prompts_are_counted(provider):
    messages = [{"role": "user", "content": "one two three"}]
    async with official.anthropic_client(provider.url, KEY) as client:
        counted = await client.messages.count_tokens(
            model="sim", messages=messages, system="be brief"
        )
    assert counted.input_tokens == 5
    models = official.gemini_client(provider.url, KEY).aio.models
    assert (await models.count_tokens(model="sim", contents="one two three")).total_tokens == 3
    content = [{"role": "user", "content": [{"text": "one two three"}]}]
    found = await asyncio.to_thread(
        official.bedrock_client(provider.url, AWS_KEY).count_tokens,
        modelId="sim",
        input={"converse": {"messages": content}},
    )
    assert found["inputTokens"] == 3


@pytest.mark.parametrize(
    ("dialect", "raised"),
    [
        ("openai_chat", openai.APIError),
        ("anthropic", anthropic.APIStatusError),
        ("ollama", ollama.ResponseError),
        ("bedrock_converse", botocore.exceptions.EventStreamError),
    ],
)
async def test_error_within_a_stream_raises_the_sdks_own_exception(provider, dialect, raised):
    await provider.fault("error_after_200", after=2)
    with pytest.raises(raised):
        await ASK[dialect](provider.url, key_of(dialect), Question())


async def test_state_tells_dialects_apart_and_when_a_request_was_last_aborted(provider):
    assert (await provider.state())["last_aborted_ms"] is None
    for dialect in DIALECTS:
        await ASK[dialect](provider.url, key_of(dialect), Question())
    state = await provider.state()
    assert state["dialects"] == dict.fromkeys(DIALECTS, 1)
    assert state["served"] == state["seen"] == 5
    await provider.fault("hang")
    asking = asyncio.ensure_future(ASK["ollama"](provider.url, KEY, Question()))
    await provider.until(lambda s: s["open"] == 1)
    asking.cancel()
    await provider.until(lambda s: s["aborted"] == 1)
    state = await provider.state()
    assert 0 <= state["last_aborted_ms"] <= state["now_ms"]
