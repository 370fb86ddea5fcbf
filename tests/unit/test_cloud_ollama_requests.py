"""The Ollama codec writes requests as profiles allow."""

import base64
import json

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.dialects import Framing
from tests.support.ollama import CODEC, asked, encoded, routed, said

PNG = pb.Image(data=b"\x89PNG", media_type="image/png")
TOOL = pb.Tool(name="look", description="d", parameters_json_schema='{"type":"object","a":1}')


def choice(mode, name=""):
    return pb.ToolChoice(mode=mode, name=name)


def effort(level):
    return pb.Reasoning(effort=level)


def refused(request, route=None):
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request, route or routed())
    return caught.value


def test_streams_are_lines_and_whole_answers_are_asked_for():
    sent = CODEC.encode_request(asked(), routed())
    assert (sent.path, sent.framing) == ("/api/chat", Framing.NDJSON)
    assert json.loads(sent.body) == {
        "model": "qwen3",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "truncate": False,
        "shift": False,
    }
    whole = CODEC.encode_request(asked(), routed(streaming=False))
    assert (whole.path, whole.framing) == ("/api/chat", None)
    assert json.loads(whole.body)["stream"] is False


def test_the_cloud_is_spoken_to_in_the_same_way():
    there = routed("ollama-cloud", "gpt-oss:120b", capabilities=["generate", "reasoning"])
    assert there.base_url == "https://ollama.com"
    assert there.profile.auth_scheme == "bearer"
    assert encoded(asked(), there)["model"] == "gpt-oss:120b"


def test_parameters_have_their_names_and_zero_survives():
    sampling = pb.Sampling(
        max_tokens=7, temperature=0, top_p=0.7, top_k=3, min_p=0.05, presence_penalty=0.5,
        frequency_penalty=-0.5, repetition_penalty=1.1, seed=0, stop=["x", "y"], n=1,
    )  # fmt: skip
    options = {
        "num_predict": 7, "temperature": 0, "top_p": 0.7, "top_k": 3, "min_p": 0.05,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repeat_penalty": 1.1, "seed": 0,
        "stop": ["x", "y"],
    }  # fmt: skip
    assert encoded(asked(sampling=sampling))["options"] == options
    lowered = encoded(asked(sampling=sampling), max_tokens=3)["options"]
    assert lowered == {**options, "num_predict": 3}


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (asked(sampling=pb.Sampling(n=2)), "sampling.n"),
        (asked(sampling=pb.Sampling(ignore_eos=True)), "sampling.ignore_eos"),
        (asked(sampling=pb.Sampling(min_tokens=2)), "sampling.min_tokens"),
        (asked(sampling=pb.Sampling(logprobs=1)), "sampling.logprobs"),
        (asked(messages=[], prompt="raw"), "prompt"),
        (asked(messages=[], prompt_token_ids=[1]), "prompt_token_ids"),
        (asked(continuation=pb.Continuation(text="so far")), "continuation.text"),
        (asked(continuation=pb.Continuation(token_ids=[1])), "continuation.token_ids"),
        (asked(response_format=pb.ResponseFormat(regex="a")), "response_format.regex"),
        (asked(response_format=pb.ResponseFormat(grammar="a")), "response_format.grammar"),
        (asked(tools=[TOOL], tool_choice=choice(pb.ToolChoice.MODE_REQUIRED)), "tool_choice"),
        (asked(tools=[TOOL], tool_choice=choice(pb.ToolChoice.MODE_REQUIRED, "look")),
         "tool_choice"),
        (asked(messages=[pb.Message(role=pb.ROLE_USER, content=[
            pb.ContentPart(image=pb.Image(uri="https://h/i.png"))])]), "images"),
    ],
)  # fmt: skip
def test_what_the_server_cannot_do_is_refused_by_name(request_, feature):
    fault = refused(request_)
    assert reason_name(fault.reason) == "UNSUPPORTED"
    assert fault.metadata["feature"] == feature


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (asked(tools=[TOOL]), "tools"),
        (asked(reasoning=effort(pb.REASONING_EFFORT_LOW)), "reasoning.effort"),
        (asked(response_format=pb.ResponseFormat(json_object={})), "response_format.json_object"),
        (asked(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(image=PNG)])]),
         "images"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused_by_name(request_, feature):
    assert refused(request_, routed(capabilities=["generate"])).metadata["feature"] == feature
    assert encoded(request_), "and sent to one that can"


def test_images_stand_beside_the_text():
    parts = [pb.ContentPart(text="a"), pb.ContentPart(image=PNG), pb.ContentPart(text="b")]
    body = encoded(asked(messages=[pb.Message(role=pb.ROLE_USER, content=parts)]))
    data = base64.b64encode(PNG.data).decode()
    assert body["messages"] == [{"role": "user", "content": "ab", "images": [data]}]


def test_tools_are_described_and_have_parameters():
    plain = pb.Tool(name="now")
    assert encoded(asked(tools=[TOOL, plain]))["tools"] == [
        {"type": "function", "function": {"name": "look", "description": "d",
         "parameters": {"type": "object", "properties": {}, "a": 1}}},
        {"type": "function", "function": {"name": "now",
         "parameters": {"type": "object", "properties": {}}}},
    ]  # fmt: skip


def test_no_tools_are_shown_to_a_model_that_may_call_none():
    body = encoded(asked(tools=[TOOL], tool_choice=choice(pb.ToolChoice.MODE_NONE)))
    assert "tools" not in body
    assert "tool_choice" not in body
    auto = encoded(asked(tools=[TOOL], tool_choice=choice(pb.ToolChoice.MODE_AUTO)))
    assert auto["tools"]
    assert "tool_choice" not in auto


def turn(*calls, state=()):
    return pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=calls, reasoning_state=state)


def result(identity, text):
    return pb.Message(role=pb.ROLE_TOOL, tool_call_id=identity, content=[pb.ContentPart(text=text)])


def test_results_name_the_tool_of_the_latest_call_with_their_id():
    conversation = [
        said("?"),
        turn(pb.ToolCall(id="call_0", name="look", arguments='{"at":"sky"}')),
        result("call_0", "blue"),
        turn(pb.ToolCall(id="call_0", name="now")),
        result("call_0", "noon"),
    ]
    assert encoded(asked(messages=conversation))["messages"][1:] == [
        {"role": "assistant", "content": "",
         "tool_calls": [
             {"id": "call_0", "function": {"name": "look", "arguments": {"at": "sky"}}}]},
        {"role": "tool", "content": "blue", "tool_name": "look", "tool_call_id": "call_0"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"id": "call_0", "function": {"name": "now", "arguments": {}}}]},
        {"role": "tool", "content": "noon", "tool_name": "now", "tool_call_id": "call_0"},
    ]  # fmt: skip


def test_results_of_two_calls_of_one_tool_are_told_apart():
    calls = [pb.ToolCall(id=name, name="look") for name in ("a", "b")]
    messages = [said("?"), turn(*calls), result("b", "2"), result("a", "1")]
    sent = encoded(asked(messages=messages))["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["a", "b"]
    assert [(m["tool_call_id"], m["content"]) for m in sent[2:]] == [("b", "2"), ("a", "1")]


@pytest.mark.parametrize("provider", ["ollama", "ollama-cloud"])
def test_a_seed_that_would_repeat_nothing_is_refused(provider):
    fault = refused(asked(sampling=pb.Sampling(seed=-1)), routed(provider))
    assert fault.metadata["feature"] == "sampling.seed"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(messages=[said("?"), result("c9", "x")]), "messages[1].tool_call_id"),
        (asked(messages=[turn(pb.ToolCall(id="c", name="f", arguments="[1]"))]),
         "messages[0].tool_calls[0].arguments"),
        (asked(messages=[turn(pb.ToolCall(id="c", name="f", arguments="{"))]),
         "messages[0].tool_calls[0].arguments"),
        (asked(tools=[pb.Tool(name="f", parameters_json_schema="7")]),
         "tools[0].parameters_json_schema"),
        (asked(response_format=pb.ResponseFormat(json_schema="{")), "response_format.json_schema"),
        (asked(tools=[pb.Tool(name="f", parameters_json_schema='{"a":' * 300 + "1" + "}" * 300)]),
         "messages"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_the_place(request_, field):
    fault = refused(request_)
    assert reason_name(fault.reason) == "INVALID_REQUEST"
    assert field in [violation.field for violation in fault.violations]


def test_own_thinking_comes_back_and_that_of_others_does_not():
    states = [
        pb.ReasoningState(provider="ollama", data=b"I need it."),
        pb.ReasoningState(provider="deepseek", data=b"other"),
    ]
    call = pb.ToolCall(id="c", name="f")
    messages = [said("?"), turn(call, state=states), result("c", "x")]
    sent = encoded(asked(messages=messages))["messages"][1]
    assert sent["thinking"] == "I need it."
    sent = encoded(asked(messages=messages), routed("ollama-cloud"))["messages"][1]
    assert "thinking" not in sent


@pytest.mark.parametrize(
    ("level", "think"),
    [
        (pb.REASONING_EFFORT_NONE, False),
        (pb.REASONING_EFFORT_LOW, "low"),
        (pb.REASONING_EFFORT_MEDIUM, "medium"),
        (pb.REASONING_EFFORT_HIGH, "high"),
    ],
)
def test_effort_is_how_much_to_think(level, think):
    assert encoded(asked(reasoning=effort(level)))["think"] == think


def test_a_model_that_only_thinks_or_does_not_is_told_so_by_its_route():
    assert "think" not in encoded(asked())
    silent = encoded(asked(reasoning=effort(pb.REASONING_EFFORT_NONE)),
                     routed(capabilities=["generate"]))  # fmt: skip
    assert "think" not in silent, "older models refuse the field"


def test_forms_of_the_answer():
    assert encoded(asked(response_format=pb.ResponseFormat(json_object={})))["format"] == "json"
    schema = '{"type":"object","required":["a"]}'
    body = encoded(asked(response_format=pb.ResponseFormat(json_schema=schema)))
    assert body["format"] == json.loads(schema)
    assert "format" not in encoded(asked(response_format=pb.ResponseFormat(text={})))


def test_vectors_are_asked_for_whole_and_never_of_a_cut_input():
    request = model_pb2.EmbedRequest(model="m", inputs=["a", "b"], dimensions=256)
    there = routed(model="nomic-embed-text", capabilities=["embed"])
    sent = CODEC.encode_embed(request, there)
    assert (sent.path, sent.framing) == ("/api/embed", None)
    assert json.loads(sent.body) == {
        "model": "nomic-embed-text", "input": ["a", "b"], "truncate": False, "dimensions": 256,
    }  # fmt: skip
    with pytest.raises(Fault) as caught:
        CODEC.encode_embed(request, routed())
    assert caught.value.metadata["feature"] == "embed"
