"""The cloud proxy in each dialect: it hears what the official SDKs hear, and ends as it must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.profile_files import built_in_profiles
from services.cloud_proxy.profiles import Profile
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.dialect_routes import DIALECTS, EMBEDDERS, KEYS, PROFILES, speaking
from tests.support.official import ASK, AWS_KEY, Question, Said
from tests.support.provider import KEY
from tools.provider_simulator.answers import LABEL, pieces, signature
from tools.provider_simulator.vectors import vector

COUNTS = ("anthropic", "gemini", "bedrock_converse")
EXCLUDES_CACHED = ("anthropic", "bedrock_converse")
# These want their reasoning back sealed, so that they can trust it; others want it in words, or
# not at all.
SEALED = ("anthropic", "gemini", "bedrock_converse")
SEAL = signature(pieces("thinking as a simulator does: not at all."))
MEANINGS = {
    "stop": pb.FINISH_REASON_STOP,
    "end_turn": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "max_tokens": pb.FINISH_REASON_LENGTH,
}


async def official(proxy: Proxy, dialect: str, question: Question) -> Said:
    """What the SDK hears when it asks the same provider itself."""
    return await ASK[dialect](proxy.provider.url, KEYS[PROFILES[dialect]], question)


def check_usage(dialect: str, usage: pb.Usage, said: Said) -> None:
    assert usage.source == pb.Usage.SOURCE_PROVIDER
    assert usage.completion_tokens == said.completion
    cached = said.cached or 0
    assert usage.cached_prompt_tokens == cached
    assert usage.prompt_tokens == said.prompt + (cached if dialect in EXCLUDES_CACHED else 0)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_text_finish_and_usage_are_those_that_the_official_sdk_hears(
    tmp_path, dialect, streamed
):
    async with speaking(tmp_path, dialect) as proxy:
        for prompt, limit in (("hello", 1000), (" ".join(["word"] * 100), 1000), ("cut", 5)):
            said = await official(proxy, dialect, Question(prompt, max_tokens=limit))
            asked = ask(prompt, f"chat-of-{dialect}", sampling=pb.Sampling(max_tokens=limit))
            if streamed:
                chunks, ended = await proxy.chunks(asked)
                assert ended is None
                text = "".join(c.text for c in chunks)
                finish, usage = chunks[-1].finish_reason, chunks[-1].usage
            else:
                answer = await proxy.answer(asked)
                text = answer.choices[0].text
                finish, usage = answer.choices[0].finish_reason, answer.usage
            assert text == said.text
            assert finish == MEANINGS[said.finish.lower()]
            check_usage(dialect, usage, said)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_tools_are_those_that_the_official_sdk_hears(tmp_path, dialect):
    schema = '{"type": "object", "properties": {"asked": {"type": "string"}}}'
    names = ("weather", "clock")
    tools = [pb.Tool(name=name, parameters_json_schema=schema) for name in names]
    async with speaking(tmp_path, dialect) as proxy:
        for prompt in ("call weather and call clock", "call clock without arguments"):
            said = await official(proxy, dialect, Question(prompt, tools=names))
            asked = ask(prompt, f"chat-of-{dialect}", tools=tools)
            asked.sampling.max_tokens = 1000
            answer = await proxy.answer(asked)
            choice = answer.choices[0]
            assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
            assert said.calls
            assert [(c.name, json.loads(c.arguments)) for c in choice.tool_calls] == said.calls
            assert choice.text == said.text
            check_usage(dialect, answer.usage, said)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_reasoning_is_that_which_the_official_sdk_hears(tmp_path, dialect):
    async with speaking(tmp_path, dialect) as proxy:
        said = await official(proxy, dialect, Question(model="sim-reasoner"))
        answer = await proxy.answer(
            ask(model=f"reasoner-of-{dialect}", sampling=pb.Sampling(max_tokens=1000))
        )
        assert answer.choices[0].reasoning == said.reasoning != ""
        assert answer.choices[0].text == said.text
        check_usage(dialect, answer.usage, said)


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d in SEALED])
async def test_reasoning_goes_back_with_the_next_turn_unchanged(tmp_path, dialect):
    schema = '{"type": "object", "properties": {"asked": {"type": "string"}}}'
    tools = [pb.Tool(name="clock", parameters_json_schema=schema)]
    async with speaking(tmp_path, dialect) as proxy:
        asked = ask("call clock", f"reasoner-of-{dialect}", tools=tools)
        asked.sampling.max_tokens = 1000
        choice = (await proxy.answer(asked)).choices[0]
        asked.messages.add(
            role=pb.ROLE_ASSISTANT,
            content=[pb.ContentPart(text=choice.text)],
            tool_calls=choice.tool_calls,
            reasoning_state=choice.reasoning_state,
        )
        asked.messages.add(
            role=pb.ROLE_TOOL,
            tool_call_id=choice.tool_calls[0].id,
            content=[pb.ContentPart(text="noon")],
        )
        await proxy.answer(asked)
        sent = json.dumps((await proxy.provider.state())["requests"][-1])
        assert SEAL in sent


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d in EMBEDDERS])
async def test_vectors_are_those_of_the_provider(tmp_path, dialect):
    inputs = ["one", "two words", "one"]
    async with speaking(tmp_path, dialect) as proxy:
        found = await proxy.stub.Embed(
            model_pb2.EmbedRequest(model=f"vectors-of-{dialect}", inputs=inputs),
            metadata=proxy.metadata,
        )
        expected = [pytest.approx(vector(text), abs=1e-6) for text in inputs]
        assert [list(one.values) for one in found.embeddings] == expected
        # Gemini and, on Bedrock, Cohere state none for vectors.
        if dialect not in ("gemini", "bedrock_converse"):
            assert found.usage.source == pb.Usage.SOURCE_PROVIDER
            assert found.usage.prompt_tokens == 4


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d in COUNTS])
async def test_prompts_are_counted_by_the_provider(tmp_path, dialect):
    async with speaking(tmp_path, dialect) as proxy:
        asked = ask("one two three", f"chat-of-{dialect}")
        found = await proxy.stub.CountTokens(
            model_pb2.CountTokensRequest(model=asked.model, request=asked),
            metadata=proxy.metadata,
        )
        assert found.prompt_tokens == 3
        assert found.source == pb.Usage.SOURCE_PROVIDER


@pytest.mark.parametrize("name", sorted(built_in_profiles()))
async def test_every_built_in_profile_reaches_an_endpoint_of_its_dialect(tmp_path, name):
    profile = built_in_profiles()[name]
    keys = f"simulator={KEY} {name}={key_of(profile)}"
    routes = {"of-profile": route_of(profile)}
    # The empty key is that of servers which ask for none.
    accepted = (KEY, AWS_KEY, "") if profile.auth_scheme == "none" else (KEY, AWS_KEY)
    async with cloud_proxy(tmp_path, keys=keys, accepted=accepted, routes=routes) as proxy:
        answer = await proxy.answer(ask(model="of-profile"))
        assert answer.choices[0].text.startswith(LABEL)
        assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP
        # As OpenAI, the simulator states it in its dialect only where it is asked to.
        told = profile.usage.ask or profile.dialect != "openai_chat"
        assert (answer.usage.source == pb.Usage.SOURCE_PROVIDER) == told
        assert (await proxy.provider.state())["dialects"][profile.dialect] == 1


def route_of(profile: Profile) -> dict[str, Any]:
    generating = [
        name for name, model in profile.models.items() if name and "generate" in model.capabilities
    ]
    return {
        "provider": profile.name,
        "model": "sim-chat" if profile.open_models else generating[0],
        "max_output": 4096,
        "capabilities": ["generate"],
    }


def key_of(profile: Profile) -> str:
    return AWS_KEY if profile.auth_scheme == "aws-sigv4" else KEY
