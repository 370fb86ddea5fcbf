"""The OpenAI chat codec writes requests as profiles allow, and reads refusals."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.answer import (
    FailureKind,
)
from tests.support.openai_chat import CODEC, asked, routed, said

RECORDINGS = Path(__file__).parent / "recordings"
ANY_SPLIT = settings(
    max_examples=200,
    suppress_health_check=[
        *settings.default.suppress_health_check,
        HealthCheck.function_scoped_fixture,
    ],
)


# Requests


def encoded(there, request, **more):
    return json.loads(CODEC.encode_request(request, there, **more).body)


def test_zero_survives_and_floats_are_as_written(tmp_path):
    sampling = pb.Sampling(temperature=0, top_p=0.7, presence_penalty=0, seed=0, stop=["x"])
    body = encoded(routed(tmp_path, "openai"), asked(sampling=sampling))
    assert body["temperature"] == 0
    assert body["top_p"] == 0.7
    assert body["presence_penalty"] == 0
    assert body["seed"] == 0
    assert body["stop"] == ["x"]
    assert "frequency_penalty" not in body
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_each_provider_gets_its_own_name_for_max_tokens(tmp_path):
    request = asked(sampling=pb.Sampling(max_tokens=7))
    assert encoded(routed(tmp_path, "openai"), request)["max_completion_tokens"] == 7
    assert encoded(routed(tmp_path, "deepseek"), request)["max_tokens"] == 7
    assert encoded(routed(tmp_path, "openai"), request, max_tokens=3)["max_completion_tokens"] == 3


def test_values_that_ask_for_nothing_are_not_refused(tmp_path):
    neutral = pb.Sampling(
        top_k=-1, min_p=0, repetition_penalty=1, ignore_eos=False, min_tokens=0, n=1
    )
    body = encoded(routed(tmp_path, "deepseek"), asked(sampling=neutral))
    assert set(body) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("provider", "request_", "feature"),
    [
        ("openai", asked(sampling=pb.Sampling(top_k=5)), "sampling.top_k"),
        ("openai", asked(sampling=pb.Sampling(min_p=0.1)), "sampling.min_p"),
        ("openai", asked(sampling=pb.Sampling(repetition_penalty=1.1)),
         "sampling.repetition_penalty"),
        ("openai", asked(sampling=pb.Sampling(ignore_eos=True)), "sampling.ignore_eos"),
        ("openai", asked(sampling=pb.Sampling(min_tokens=3)), "sampling.min_tokens"),
        ("openai", asked(sampling=pb.Sampling(logprobs=0)), "sampling.logprobs"),
        ("openai", asked(sampling=pb.Sampling(stop=list("abcde"))), "sampling.stop"),
        ("deepseek", asked(sampling=pb.Sampling(seed=1)), "sampling.seed"),
        ("deepseek", asked(sampling=pb.Sampling(n=2)), "sampling.n"),
        ("moonshot", asked(sampling=pb.Sampling(temperature=1.5)), "sampling.temperature"),
        ("openai", asked(messages=[], prompt="raw"), "prompt"),
        ("openai", asked(messages=[], prompt_token_ids=[1]), "prompt_token_ids"),
        ("openai", asked(response_format=pb.ResponseFormat(regex="a")), "response_format.regex"),
        ("openai", asked(response_format=pb.ResponseFormat(grammar="a")),
         "response_format.grammar"),
        ("openai", asked(response_format=pb.ResponseFormat(
            choice=pb.ResponseFormat.Choice(options=["a"]))), "response_format.choice"),
        ("deepseek", asked(response_format=pb.ResponseFormat(json_schema="{}")),
         "response_format.json_schema"),
        ("openai", asked(continuation=pb.Continuation(text="so far")), "continuation.text"),
        ("deepseek", asked(continuation=pb.Continuation(token_ids=[1, 2])),
         "continuation.token_ids"),
        ("openai", asked(reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_HIGH)),
         "reasoning.effort"),
        ("azure-openai", asked(tools=[pb.Tool(name="f")]), "tools"),
        ("deepseek", asked(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(
            image=pb.Image(data=b"x", media_type="image/png"))])]), "images"),
    ],
)  # fmt: skip
def test_what_a_provider_cannot_do_is_refused_by_name(tmp_path, provider, request_, feature):
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request_, routed(tmp_path, provider))
    assert reason_name(caught.value.reason) == "UNSUPPORTED"
    assert caught.value.metadata["feature"] == feature


def test_parameters_ignored_while_reasoning_are_dropped_visibly(tmp_path):
    there = routed(tmp_path, "deepseek")
    warm = pb.Sampling(temperature=0.5, max_tokens=9)
    thinking = CODEC.encode_request(asked(sampling=warm), there)
    assert thinking.dropped == ("temperature",)
    assert "temperature" not in json.loads(thinking.body)
    plain = asked(sampling=warm, reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_NONE))
    sent = CODEC.encode_request(plain, there)
    assert sent.dropped == ()
    assert json.loads(sent.body)["temperature"] == 0.5
    assert json.loads(sent.body)["thinking"] == {"type": "disabled"}


def test_conversation_with_tools_and_replayed_reasoning(tmp_path):
    messages = [
        said("be brief", pb.ROLE_SYSTEM),
        said("weather?"),
        pb.Message(
            role=pb.ROLE_ASSISTANT,
            tool_calls=[pb.ToolCall(index=0, id="c1", name="weather", arguments='{"a":1}')],
            reasoning_state=[
                pb.ReasoningState(provider="deepseek", data=b"I thought."),
                pb.ReasoningState(provider="other", data=b"\x00"),
            ],
        ),
        pb.Message(
            role=pb.ROLE_TOOL, tool_call_id="c1", content=[pb.ContentPart(text="rain")]
        ),
    ]  # fmt: skip
    tools = [pb.Tool(name="weather", description="d", parameters_json_schema='{"type":"object"}')]
    choice_ = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="weather")
    body = encoded(
        routed(tmp_path, "deepseek"), asked(messages=messages, tools=tools, tool_choice=choice_)
    )
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I thought.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"a":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    elsewhere = encoded(routed(tmp_path, "openai"), asked(messages=messages, tools=tools))
    assert "reasoning_content" not in elsewhere["messages"][2]


def test_images_travel_as_data_urls(tmp_path):
    image = pb.Image(data=b"\x89PNG", media_type="image/png")
    parts = [pb.ContentPart(text="what?"), pb.ContentPart(image=image)]
    message = pb.Message(role=pb.ROLE_USER, content=parts)
    body = encoded(routed(tmp_path, "openai"), asked(messages=[message]))
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


def test_response_formats(tmp_path):
    there = routed(tmp_path, "openai")
    schema = pb.ResponseFormat(json_schema='{"type":"object"}')
    assert encoded(there, asked(response_format=schema))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }
    anything = pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    body = encoded(there, asked(response_format=anything))
    assert body["response_format"] == {"type": "json_object"}
    free = pb.ResponseFormat(text=pb.ResponseFormat.FreeText())
    assert "response_format" not in encoded(there, asked(response_format=free))
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(asked(response_format=pb.ResponseFormat(json_schema="{")), there)
    assert [v.field for v in caught.value.violations] == ["response_format.json_schema"]


def test_continuation_by_text_marks_the_last_turn_and_takes_its_own_path(tmp_path):
    request = asked(continuation=pb.Continuation(text="Once", token_ids=[7]))
    sent = CODEC.encode_request(request, routed(tmp_path, "deepseek"))
    assert sent.path == "/beta/chat/completions"
    assert json.loads(sent.body)["messages"][-1] == {
        "role": "assistant",
        "content": "Once",
        "prefix": True,
    }


# Refusals


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "", "bad", FailureKind.REFUSED_REQUEST),
        (422, "", "bad", FailureKind.REFUSED_REQUEST),
        (413, "", "bad", FailureKind.REFUSED_REQUEST),
        (400, "context_length_exceeded", "long", FailureKind.TOO_LONG),
        (400, "invalid_request_error", "This model's maximum context length is 8 tokens",
         FailureKind.TOO_LONG),
        (401, "", "", FailureKind.REFUSED_KEY),
        (403, "", "", FailureKind.REFUSED_KEY),
        (402, "", "", FailureKind.NO_CREDIT),
        (429, "insufficient_quota", "", FailureKind.NO_CREDIT),
        (429, "rate_limit_exceeded", "", FailureKind.BUSY),
        (404, "", "", FailureKind.MISCONFIGURED),
        (302, "", "", FailureKind.MISCONFIGURED),
        (500, "", "", FailureKind.FAILED),
        (503, "", "", FailureKind.FAILED),
        (529, "", "", FailureKind.FAILED),
        (408, "", "", FailureKind.FAILED),
    ],
)  # fmt: skip
def test_refusals_by_status(status, code, message, kind):
    body = json.dumps({"error": {"message": message, "code": code, "param": "p"}}).encode()
    failure = CODEC.decode_error(status, {}, body)
    assert failure.kind is kind
    assert failure.http_status == status


def test_only_texts_about_the_request_reach_the_caller():
    body = json.dumps({"error": {"message": "Incorrect API key provided: sk-1"}}).encode()
    for status in (401, 403, 402, 404, 429, 500):
        assert "sk-1" not in CODEC.decode_error(status, {}, body).message
    body = json.dumps({"error": {"message": "top_p\x00must be" + "x" * 9999}}).encode()
    failure = CODEC.decode_error(400, {}, body)
    assert failure.message.startswith("top_p must be")
    assert len(failure.message) == 300


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 7}', b'{"error":"plain"}'])
def test_refusals_with_any_body(body):
    assert CODEC.decode_error(400, {}, body).kind is FailureKind.REFUSED_REQUEST
