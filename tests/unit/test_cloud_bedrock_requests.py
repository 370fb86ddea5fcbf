"""What the Bedrock codec sends: what the official client's validator takes, or a refusal."""

from __future__ import annotations

import base64
import json

import botocore.session
import pytest
from botocore.validate import ParamValidator

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.cloud_proxy.dialect_table import DIALECTS
from tests.support.recordings import route_to

CODEC = DIALECTS["bedrock_converse"]
NOVA = "amazon.nova-pro-v1:0"
CLAUDE = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"
SERVICE = botocore.session.Session().get_service_model("bedrock-runtime")
STATE = b'[{"reasoningText":{"text":"look","signature":"sig=="}},{"redactedContent":"cmVk"}]'


def said(text: str, role=pb.ROLE_USER, **fields) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=text)] if text else [], **fields)


def asked(*messages: pb.Message, **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="m", messages=messages or [said("hello")], **fields)


def encoded(request: pb.GenerateRequest, model: str = NOVA, **entry):
    found = CODEC.encode_request(request, route_to("bedrock", model, **entry))
    body = json.loads(found.body)
    validate("Converse", {"modelId": model, **body})
    return found, body


def validate(operation: str, parameters: dict) -> None:
    """Fails where the official client would refuse to send it."""
    shape = SERVICE.operation_model(operation).input_shape
    report = ParamValidator().validate(with_bytes(parameters), shape)
    assert not report.has_errors(), report.generate_report()


def with_bytes(value):
    """JSON's base64 as the bytes that the official client wants."""
    if isinstance(value, dict):
        return {
            k: base64.b64decode(v) if k in ("bytes", "redactedContent") else with_bytes(v)
            for k, v in value.items()
        }
    return [with_bytes(v) for v in value] if isinstance(value, list) else value


def refused(request: pb.GenerateRequest, model: str = NOVA, **entry) -> str:
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request, route_to("bedrock", model, **entry))
    if caught.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED:
        return str(caught.value.metadata["feature"])
    assert caught.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    return caught.value.violations[0].field


def test_model_goes_into_the_path_and_parameters_into_their_place():
    sampling = pb.Sampling(max_tokens=7, temperature=0.0, top_p=0.5, stop=["END"])
    found, body = encoded(asked(said("be brief", pb.ROLE_SYSTEM), said("hi"), sampling=sampling))
    assert found.path == "/model/amazon.nova-pro-v1%3A0/converse-stream"
    assert body == {
        "system": [{"text": "be brief"}],
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
        "inferenceConfig": {
            "maxTokens": 7, "temperature": 0.0, "topP": 0.5, "stopSequences": ["END"],
        },
    }  # fmt: skip
    whole, _ = encoded(asked(), streaming=False)
    assert (whole.path.rpartition("/")[2], whole.framing) == ("converse", None)


def test_turn_of_tools_goes_back_with_its_reasoning_and_all_results_in_one_message():
    calls = [pb.ToolCall(index=n, id=f"t{n}", name="clock", arguments='{"n":1}') for n in (0, 1)]
    state = pb.ReasoningState(provider="bedrock", data=STATE)
    other = pb.ReasoningState(provider="anthropic", data=b"not ours")
    turn = said("Let me look.", pb.ROLE_ASSISTANT, tool_calls=calls, reasoning_state=[state, other])
    results = [said(f"it is {n}", pb.ROLE_TOOL, tool_call_id=f"t{n}") for n in (0, 1)]
    tools = [pb.Tool(name="clock", description="tells", parameters_json_schema='{"type":"object"}')]
    _, body = encoded(asked(said("when?"), turn, *results, tools=tools), CLAUDE)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "look", "signature": "sig=="}}},
        {"reasoningContent": {"redactedContent": "cmVk"}},
        {"text": "Let me look."},
        {"toolUse": {"toolUseId": "t0", "name": "clock", "input": {"n": 1}}},
        {"toolUse": {"toolUseId": "t1", "name": "clock", "input": {"n": 1}}},
    ]
    assert [b["toolResult"]["toolUseId"] for b in body["messages"][2]["content"]] == ["t0", "t1"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (pb.ToolChoice(), None),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), {"any": {}}),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="f"), {"tool": {"name": "f"}}),
    ],
)
def test_tool_choice(choice, expected):
    _, body = encoded(asked(tools=[pb.Tool(name="f")], tool_choice=choice))
    assert body["toolConfig"].get("toolChoice") == expected


def test_tools_that_must_not_be_called_are_left_out_unless_they_were_called_before():
    none = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
    _, body = encoded(asked(tools=[pb.Tool(name="f")], tool_choice=none))
    assert "toolConfig" not in body
    before = said("", pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="t", name="f")])
    result = said("x", pb.ROLE_TOOL, tool_call_id="t")
    again = asked(said("a"), before, result, tools=[pb.Tool(name="f")], tool_choice=none)
    assert refused(again) == "tool_choice"


def test_blank_texts_are_left_out_where_the_provider_refuses_them():
    before = said(" ", pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="t", name="f")])
    result = said("x", pb.ROLE_TOOL, tool_call_id="t")
    _, body = encoded(asked(said("a"), before, result, tools=[pb.Tool(name="f")]))
    assert [list(block) for block in body["messages"][1]["content"]] == [["toolUse"]]


def test_images_go_as_bytes_and_addresses_are_refused():
    image = pb.Image(data=b"\x89PNG", media_type="image/png")
    _, body = encoded(asked(pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(image=image)])))
    (block,) = body["messages"][0]["content"]
    assert block["image"] == {"format": "png", "source": {"bytes": "iVBORw=="}}
    for other in (pb.Image(uri="https://h/x.png"), pb.Image(data=b"x", media_type="image/bmp")):
        part = pb.ContentPart(image=other)
        assert refused(asked(pb.Message(role=pb.ROLE_USER, content=[part]))) == "images"


def test_effort_becomes_a_budget_and_what_thinking_forbids_is_dropped_visibly():
    reasoning = pb.Reasoning(effort=pb.REASONING_EFFORT_LOW)
    sampling = pb.Sampling(temperature=0.5, max_tokens=4096)
    found, body = encoded(asked(reasoning=reasoning, sampling=sampling), CLAUDE)
    assert body["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 2048
    assert found.dropped == ("temperature",)
    assert refused(asked(reasoning=reasoning)) == "reasoning.effort"


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"prompt": "x", "messages": []}, "prompt"),
        ({"sampling": pb.Sampling(seed=1)}, "sampling.seed"),
        ({"sampling": pb.Sampling(n=2)}, "sampling.n"),
        ({"sampling": pb.Sampling(logprobs=1)}, "sampling.logprobs"),
        ({"response_format": pb.ResponseFormat(json_schema="{}")}, "response_format.json_schema"),
        ({"continuation": pb.Continuation(text="so far")}, "continuation"),
        ({"messages": [said("hi"), said("be kind", pb.ROLE_SYSTEM)]}, "messages"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields, feature):
    request = pb.GenerateRequest(**{"model": "m", "messages": [said("hello")], **fields})
    assert refused(request) == feature


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b'[{"text":"I am the system"}]', b'[{"reasoningText":{"text":1}}]',
     b'[{"reasoningText":{"signature":"s"}}]', b'[{"redactedContent":"no base64!"}]'],
)  # fmt: skip
def test_state_that_was_not_given_out_is_invalid(data):
    state = pb.ReasoningState(provider="bedrock", data=data)
    turn = said("x", pb.ROLE_ASSISTANT, reasoning_state=[state])
    field = refused(asked(said("a"), turn, said("b")), CLAUDE)
    assert field == "messages[1].reasoning_state[0].data"


def test_counts_are_asked_with_all_that_makes_the_prompt():
    route = route_to("bedrock", CLAUDE)
    tools = [pb.Tool(name="f")]
    found = CODEC.encode_count(asked(said("s", pb.ROLE_SYSTEM), said("u"), tools=tools), route)
    assert found is not None
    # The model by itself: counting knows no inference profiles.
    assert found.path == "/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/count-tokens"
    body = json.loads(found.body)
    validate("CountTokens", {"modelId": CLAUDE, **body})
    assert set(body["input"]["converse"]) == {"messages", "system", "toolConfig"}
    assert CODEC.decode_count(route, b'{"inputTokens": 15}') == 15


def test_vectors_are_asked_in_the_form_of_the_models_family():
    titan = route_to("bedrock", "amazon.titan-embed-text-v2:0")
    one = model_pb2.EmbedRequest(inputs=["a"], dimensions=256)
    assert json.loads(CODEC.encode_embed(one, titan).body) == {"inputText": "a", "dimensions": 256}
    found = CODEC.decode_embed(one, titan, b'{"embedding":[0.5],"inputTextTokenCount":3}')
    assert (found.vectors, found.usage.prompt) == ([[0.5]], 3)
    cohere = route_to("bedrock", "cohere.embed-multilingual-v3")
    two = model_pb2.EmbedRequest(inputs=["a", "b"])
    assert json.loads(CODEC.encode_embed(two, cohere).body)["texts"] == ["a", "b"]
    assert CODEC.decode_embed(two, cohere, b'{"embeddings":[[1],[2]]}').vectors == [[1.0], [2.0]]
    for request, route in ((two, titan), (one, cohere), (one, route_to("bedrock", NOVA))):
        with pytest.raises(Fault):
            CODEC.encode_embed(request, route)
