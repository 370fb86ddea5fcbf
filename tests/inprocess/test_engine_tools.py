"""Tool calls and reasoning of the real engine, as callers see them: plain RPCs, sessions, router.

One vLLM serves all of it, with the small model under markers of its own; see tool_model.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from anabranch import AsyncClient, FinishReason
from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.local_engine import app as engine_app
from services.local_engine.settings import Settings
from tests.inprocess.test_local_engine import MODEL_NAME, Caller, refusal
from tests.support.engines import MODEL
from tests.support.inprocess import cluster
from tests.support.tool_model import write_tool_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Basel"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = pb.Tool(
    name="get_weather",
    description="The weather in a city.",
    parameters_json_schema=json.dumps(SCHEMA),
)
NAMED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="get_weather")
CALL_IN_WORDS = (
    r'Yes\. <tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Bern|Basel)"\}\}\n'
    r"</tool_call>"
)
THINK = pb.Reasoning(effort=pb.REASONING_EFFORT_LOW)
QUESTION = "What is the capital of France?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory):
    """A cluster whose one engine is vLLM, and a caller of that engine."""
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    directory = tmp_path_factory.mktemp("tools")
    model = write_tool_model(directory / "tool-model")
    async with cluster(directory, engines=()) as found:
        settings = Settings(
            **found.common("engine-vllm")
            | {
                "model": str(model),
                "served_model_name": MODEL_NAME,
                "max_num_seqs": 16,
                "max_model_len": 1024,
                "cpu_kv_cache_gib": 1,
                "tool_parser": "hermes",
                "reasoning_parser": "deepseek_r1",
            }
        )
        host = await found.stack.enter_async_context(engine_app.running(settings))
        await found.backends_ready(1)
        token = await found.token()
        async with found.channel(host) as channel:
            yield found, Caller(host, channel, token), token


@pytest.fixture
def caller(scene) -> Caller:
    return scene[1]


def request(text: str = QUESTION, **fields: Any) -> pb.GenerateRequest:
    sampling = {"temperature": 0.0, "max_tokens": 120} | fields.pop("sampling", {})
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    fields.setdefault("messages", [message])
    fields.setdefault("model", MODEL_NAME)
    return pb.GenerateRequest(sampling=pb.Sampling(**sampling), **fields)


async def whole(caller: Caller, asked: pb.GenerateRequest) -> pb.GenerateResponse:
    answer: pb.GenerateResponse = await caller.stub.Generate(
        asked, metadata=caller.metadata, timeout=300
    )
    return answer


async def chunks_of(caller: Caller, asked: pb.GenerateRequest) -> list[pb.GenerateChunk]:
    call = caller.stub.StreamGenerate(asked, metadata=caller.metadata, timeout=300)
    return [chunk async for chunk in call]


def arguments_of(chunks: list[pb.GenerateChunk]) -> str:
    """Of call 0, joined; its id and name come once, first."""
    fragments = [call for chunk in chunks for call in chunk.tool_calls if call.index == 0]
    assert fragments[0].id
    assert fragments[0].name == "get_weather"
    assert not any(call.id or call.name for call in fragments[1:])
    return "".join(call.arguments for call in fragments)


async def test_a_named_tool_is_called_with_arguments_of_its_schema_through_every_rpc(caller):
    asked = request("The weather in Bern, please.", tools=[WEATHER], tool_choice=NAMED)
    answer = await whole(caller, asked)
    chunks = await chunks_of(caller, asked)
    messages = await caller.session(asked)
    framed = [frame.chunk for message in messages for frame in message.frames]
    (choice,) = answer.choices
    (call,) = choice.tool_calls
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert (call.name, choice.text) == ("get_weather", "")
    assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    tokens = list(choice.token_ids)
    assert answer.usage.completion_tokens == len(tokens)
    for parts in (chunks, framed):
        assert arguments_of(parts) == call.arguments
        assert [t for c in parts for t in c.token_ids] == tokens
        assert parts[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS
        position = 0
        for chunk in parts:
            assert chunk.first_token == position
            position += len(chunk.token_ids)


async def test_a_call_is_demanded_of_any_tool_and_of_every_choice(caller):
    required = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    sampling = {"n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 120}
    answer = await whole(
        caller, request("Weather?", tools=[WEATHER], tool_choice=required, sampling=sampling)
    )
    assert len(answer.choices) == 2
    ids = set()
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.tool_calls[0].arguments), SCHEMA)
        ids.add(choice.tool_calls[0].id)
    assert len(ids) == 2


async def test_a_call_that_the_model_writes_by_itself_is_found_after_its_text(caller):
    form = pb.ResponseFormat(regex=CALL_IN_WORDS)
    asked = request("Weather?", tools=[WEATHER], response_format=form)
    chunks = await chunks_of(caller, asked)
    assert json.loads(arguments_of(chunks))["city"] in ("Bern", "Basel")
    assert "".join(c.text for c in chunks).strip() == "Yes."
    assert chunks[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS


async def test_a_call_that_max_tokens_cuts_ends_as_length(caller):
    asked = request("Weather?", tools=[WEATHER], tool_choice=NAMED)
    chunks = await chunks_of(caller, asked)
    begun = next(c.first_token for c in chunks if any(t.arguments for t in c.tool_calls))
    asked.sampling.max_tokens = begun + 2
    cut = await chunks_of(caller, asked)
    assert cut[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert arguments_of(chunks).startswith(arguments_of(cut))
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments_of(cut))


async def test_reasoning_comes_apart_from_the_answer_and_is_counted(caller):
    asked = request(reasoning=THINK)
    answer = await whole(caller, asked)
    chunks = await chunks_of(caller, asked)
    (choice,) = answer.choices
    assert "capital of France" in choice.reasoning
    assert "Paris" in choice.text
    assert "think" not in choice.reasoning + choice.text
    assert "".join(c.reasoning for c in chunks) == choice.reasoning
    assert "".join(c.text for c in chunks) == choice.text
    first_text = next(c.first_token for c in chunks if c.text)
    assert answer.usage.reasoning_tokens == chunks[-1].usage.reasoning_tokens == first_text - 1
    asked.reasoning.include = False
    hidden = await whole(caller, asked)
    assert (hidden.choices[0].reasoning, hidden.choices[0].text) == ("", choice.text)
    assert list(hidden.choices[0].token_ids) == list(choice.token_ids)
    assert hidden.usage.reasoning_tokens == answer.usage.reasoning_tokens


async def test_a_model_that_is_told_not_to_reason_does_not(caller):
    answer = await whole(caller, request(reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_NONE)))
    assert answer.choices[0].reasoning == ""
    assert "capital of France" in answer.choices[0].text
    assert answer.usage.reasoning_tokens == 0


async def test_a_form_holds_for_the_answer_and_not_for_the_reasoning_before_it(caller):
    form = pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=["a river", "a lake"]))
    answer = await whole(caller, request(reasoning=THINK, response_format=form))
    assert "capital of France" in answer.choices[0].reasoning
    assert answer.choices[0].text in ("a river", "a lake")
    raw = request(prompt="Is water wet? Answer:", messages=[], response_format=form)
    assert (await whole(caller, raw)).choices[0].text in ("a river", "a lake")


async def test_an_answer_with_hidden_reasoning_goes_on_where_it_was(caller):
    asked = request(reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_LOW, include=False))
    answer = (await whole(caller, asked)).choices[0]
    for cut in (2, len(answer.token_ids) - 2):
        asked.continuation.Clear()
        asked.continuation.token_ids.extend(answer.token_ids[:cut])
        rest = await chunks_of(caller, asked)
        assert [t for c in rest for t in c.token_ids] == list(answer.token_ids[cut:])
        assert rest[0].first_token == cut
        assert "".join(c.text for c in rest) == answer.text
        assert not any(c.reasoning for c in rest)


async def test_a_conversation_with_calls_and_their_results_is_read(caller):
    call = pb.ToolCall(id="c1", name="get_weather", arguments='{"city": "Bern"}')
    said = pb.ContentPart(text="12 degrees")
    messages = [
        pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="Weather?")]),
        pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call]),
        pb.Message(role=pb.ROLE_TOOL, tool_call_id="c1", content=[said]),
    ]
    answer = await whole(caller, request(messages=messages, tools=[WEATHER]))
    assert answer.choices[0].finish_reason
    counts = []
    for tools in ([], [WEATHER]):
        asked = model_pb2.CountTokensRequest(
            model=MODEL_NAME, request=request(messages=messages, tools=tools)
        )
        counts.append(await caller.stub.CountTokens(asked, metadata=caller.metadata))
    assert counts[1].prompt_tokens > counts[0].prompt_tokens + 40
    assert answer.usage.prompt_tokens == counts[1].prompt_tokens
    messages[1].tool_calls[0].arguments = "not JSON"
    fault = await refusal(whole(caller, request(messages=messages, tools=[WEATHER])))
    assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert fault.violations[0].field == "messages[1].tool_calls[0].arguments"


async def test_a_schema_that_no_call_can_be_made_of_is_refused_by_name(caller):
    bad = pb.Tool(name="f", parameters_json_schema='{"type": "object", "properties": 5}')
    required = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    fault = await refusal(whole(caller, request("x", tools=[bad], tool_choice=required)))
    assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert fault.violations[0].field.startswith("tools")
    assert (await whole(caller, request())).choices[0].text


async def test_deltas_add_up_through_the_router_and_the_client(scene):
    found, _, token = scene
    assert found.router is not None
    tool = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}
    question = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {
        "model": MODEL_NAME,
        "temperature": 0.0,
        "max_tokens": 120,
        "timeout": 300,
    }
    async with AsyncClient(found.router.address, token=token, timeout=300) as client:
        listed = {model.name: model for model in await client.models()}
        called = await client.generate(
            messages=[{"role": "user", "content": "The weather in Bern, please."}],
            tools=[tool],
            tool_choice="get_weather",
            **asked,
        )
        async with client.stream(messages=question, reasoning="low", **asked) as stream:
            pieces = [(chunk.reasoning, chunk.text) async for chunk in stream]
    assert {"tools", "reasoning"} <= {str(c) for c in listed[MODEL_NAME].capabilities}
    (call,) = called.tool_calls
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert called.finish_reason is FinishReason.TOOL_CALLS
    assert "capital of France" in stream.reasoning
    assert "Paris" in stream.text
    assert stream.usage is not None
    assert stream.usage.reasoning_tokens > 0
    assert "".join(text for _, text in pieces) == stream.text
