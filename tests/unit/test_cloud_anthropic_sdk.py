"""Anthropic's own SDK is the oracle: it hears in our recordings what our codec hears in them, and
the types of its parameters hold what our codec sends."""

import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from pydantic import TypeAdapter

from anabranch.v1 import generation_pb2 as pb
from tests.support.anthropic import CODEC, HAIKU, OPUS, SONNET, asked, effort, routed, said
from tests.support.recordings import RECORDINGS, Recording, load

READ = [load(path) for path in sorted((RECORDINGS / "anthropic").glob("*.json"))]
WHOLE = [recording for recording in READ if recording.expect is not None]
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def told_by_sdk(recording: Recording) -> anthropic.types.Message:
    """The message that the SDK puts together from the recorded bytes."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=recording.data)

    client = anthropic.Anthropic(
        api_key="none",
        base_url="https://provider.invalid",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    messages = [{"role": "user", "content": "hello"}]
    with client.messages.stream(model="m", max_tokens=1, messages=messages) as stream:  # type: ignore[arg-type]
        return stream.get_final_message()


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_sdk_hears_the_same(recording):
    heard = recording.hear([recording.data])
    message = told_by_sdk(recording)
    kinds: dict[str, list[Any]] = {}
    for block in message.content:
        kinds.setdefault(block.type, []).append(block)
    assert "".join(b.text for b in kinds.get("text", [])) == heard.text.get("0", "")
    thoughts = "".join(b.thinking for b in kinds.get("thinking", []))
    assert thoughts == heard.reasoning.get("0", "")

    calls = heard.calls.get("0", [])
    assert [(c["id"], c["name"]) for c in calls] == [
        (b.id, b.name) for b in kinds.get("tool_use", [])
    ]
    if heard.finish["0"] != "length":
        # Arguments that were cut off are left as they are here; the SDK reads what it can.
        inputs = [b.input for b in kinds.get("tool_use", [])]
        assert [json.loads(c["arguments"]) for c in calls] == inputs

    assert heard.finish["0"] == FINISHES[str(message.stop_reason)]
    assert heard.matched_stop.get("0") == message.stop_sequence

    usage = message.usage
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    details = usage.output_tokens_details
    assert heard.usage == {
        "prompt": usage.input_tokens + read + written,
        "cached": read,
        "completion": usage.output_tokens,
        "reasoning": details.thinking_tokens if details else 0,
        "cache_written": written,
    }

    kept = [
        b.model_dump(exclude_none=True)
        for b in message.content
        if b.type in ("thinking", "redacted_thinking")
    ]
    assert json.loads(heard.replay.get("0", "[]")) == kept


def test_recordings_show_every_stop_reason_that_ends_a_turn():
    assert {str(told_by_sdk(recording).stop_reason) for recording in WHOLE} == set(FINISHES)


def test_sdk_fails_too_where_an_error_comes_after_output():
    recording = load(RECORDINGS / "anthropic" / "overloaded.json")
    with pytest.raises(anthropic.APIStatusError):
        told_by_sdk(recording)


def complete(value: Any) -> Any:
    """The value with lists that are read on demand read to their end."""
    if isinstance(value, dict):
        return {name: complete(inner) for name, inner in value.items()}
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return [complete(inner) for inner in value]


CONVERSATION = [
    said("be brief", pb.ROLE_SYSTEM),
    pb.Message(
        role=pb.ROLE_USER,
        content=[
            pb.ContentPart(text="what is it?"),
            pb.ContentPart(image=pb.Image(data=b"\x89PNG", media_type="image/png")),
            pb.ContentPart(image=pb.Image(uri="https://h.example/a.webp")),
        ],
    ),
    pb.Message(
        role=pb.ROLE_ASSISTANT,
        content=[pb.ContentPart(text="Let me look.")],
        tool_calls=[pb.ToolCall(index=0, id="a.b:0", name="look", arguments='{"x":1}')],
        reasoning_state=[
            pb.ReasoningState(
                provider="anthropic",
                data=b'[{"type":"thinking","thinking":"hm","signature":"s"},'
                b'{"type":"redacted_thinking","data":"d"}]',
            )
        ],
    ),
    pb.Message(role=pb.ROLE_TOOL, tool_call_id="a.b:0", content=[pb.ContentPart(text="a cat")]),
]
REQUEST = asked(
    messages=CONVERSATION,
    tools=[pb.Tool(name="look", description="d", parameters_json_schema='{"type":"object"}')],
    tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO),
    response_format=pb.ResponseFormat(json_schema='{"type":"object"}'),
    sampling=pb.Sampling(max_tokens=9000, stop=["x"]),
)


@pytest.mark.parametrize("model", [HAIKU, SONNET, OPUS])
@pytest.mark.parametrize("level", [pb.REASONING_EFFORT_UNSPECIFIED, pb.REASONING_EFFORT_MEDIUM])
def test_parameters_of_the_sdk_hold_all_of_a_request(model, level):
    request = pb.GenerateRequest()
    request.CopyFrom(REQUEST)
    request.reasoning.CopyFrom(effort(level))
    body = json.loads(CODEC.encode_request(request, routed(model)).body)
    # What the types do not know would be left out, so equality says that they know all of it.
    assert complete(TypeAdapter(MessageCreateParamsStreaming).validate_python(body)) == body
    count = CODEC.encode_count(request, routed(model))
    assert count is not None
    body = json.loads(count.body)
    assert complete(TypeAdapter(MessageCountTokensParams).validate_python(body)) == body
