"""The Gemini codec writes requests as profiles allow."""

import json

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.profile_files import built_in_profiles
from tests.support.gemini import (
    CODEC,
    FLASH,
    OLDER,
    answered,
    asked,
    called,
    encoded,
    routed,
    said,
    turn,
)

PRO = "gemini-3.1-pro-preview"
PNG = pb.Image(data=b"\x89PNG", media_type="image/png")


def seen(image: pb.Image, role=pb.ROLE_USER) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(image=image)])


# Where and how


def test_streams_ask_for_events_at_their_own_path():
    sent = CODEC.encode_request(asked(), routed())
    assert sent.path == "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    assert sent.framing is Framing.SSE
    whole = CODEC.encode_request(asked(), routed(streaming=False))
    assert whole.path == "/v1beta/models/gemini-3.8-flash:generateContent"
    assert whole.framing is None


def test_vertex_speaks_the_same_below_the_address_of_the_routes_file():
    there = routed(provider="vertex-ai", base_url="https://h/v1beta1/projects/p/locations/global")
    sent = CODEC.encode_request(asked(), there)
    assert sent.path == "/publishers/google/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    assert there.profile.auth_scheme == "bearer"
    assert CODEC.encode_count(asked(), there) is None


def test_a_name_cannot_leave_its_place_in_the_path():
    sent = CODEC.encode_request(asked(), routed("../x?y", capabilities=["generate"]))
    assert sent.path == "/v1beta/models/..%2Fx%3Fy:streamGenerateContent?alt=sse"


# Parameters


def test_parameters_have_their_names_and_zero_survives():
    sampling = pb.Sampling(max_tokens=7, temperature=0, top_p=0.7, top_k=3, seed=0, stop=["x"], n=1)
    config = encoded(asked(sampling=sampling), routed(PRO))["generationConfig"]
    config.pop("thinkingConfig")
    assert config == {
        "maxOutputTokens": 7,
        "temperature": 0,
        "topP": 0.7,
        "topK": 3,
        "seed": 0,
        "stopSequences": ["x"],
    }
    lowered = encoded(asked(sampling=sampling), routed(PRO), max_tokens=3)
    assert lowered["generationConfig"]["maxOutputTokens"] == 3


def test_several_candidates_and_penalties_where_the_model_has_them():
    asking = asked(sampling=pb.Sampling(n=2))
    assert encoded(asking, routed(OLDER))["generationConfig"]["candidateCount"] == 2
    unlisted = routed("gemini-2.0-x", capabilities=["generate"])
    sampling = pb.Sampling(presence_penalty=1, frequency_penalty=0.5)
    config = encoded(asked(sampling=sampling), unlisted)["generationConfig"]
    assert config == {"presencePenalty": 1, "frequencyPenalty": 0.5}


def test_sampling_that_the_model_ignores_is_dropped_visibly():
    sent = CODEC.encode_request(asked(sampling=pb.Sampling(temperature=0.2, top_k=5)), routed())
    assert sent.dropped == ("temperature", "top_k")
    assert "temperature" not in json.loads(sent.body)["generationConfig"]


@pytest.mark.parametrize(
    ("model", "request_", "feature"),
    [
        (FLASH, asked(sampling=pb.Sampling(n=2)), "sampling.n"),
        (FLASH, asked(sampling=pb.Sampling(presence_penalty=0.5)), "sampling.presence_penalty"),
        (PRO, asked(sampling=pb.Sampling(frequency_penalty=1)), "sampling.frequency_penalty"),
        (PRO, asked(sampling=pb.Sampling(top_k=-1)), "sampling.top_k"),
        (PRO, asked(sampling=pb.Sampling(seed=2**31)), "sampling.seed"),
        (PRO, asked(sampling=pb.Sampling(stop=list("abcdef"))), "sampling.stop"),
        (PRO, asked(sampling=pb.Sampling(min_p=0.1)), "sampling.min_p"),
        (PRO, asked(sampling=pb.Sampling(logprobs=1)), "sampling.logprobs"),
        (PRO, asked(messages=[], prompt="raw"), "prompt"),
        (PRO, asked(messages=[], prompt_token_ids=[1]), "prompt_token_ids"),
        (PRO, asked(continuation=pb.Continuation(text="so far")), "continuation.text"),
        (PRO, asked(continuation=pb.Continuation(token_ids=[1])), "continuation.text"),
        (PRO, asked(response_format=pb.ResponseFormat(regex="a")), "response_format.regex"),
        (PRO, asked(reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_NONE)), "reasoning.effort"),
        (PRO, asked(messages=[said("hi"), said("be brief", pb.ROLE_SYSTEM)]),
         "system_in_conversation"),
        (PRO, asked(messages=[seen(PNG, pb.ROLE_SYSTEM), said("hi")]), "images"),
        (PRO, asked(messages=[said("hi"), seen(PNG, pb.ROLE_ASSISTANT)]), "images"),
    ],
)  # fmt: skip
def test_what_the_provider_cannot_do_is_refused_by_name(model, request_, feature):
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request_, routed(model))
    assert reason_name(caught.value.reason) == "UNSUPPORTED"
    assert caught.value.metadata["feature"] == feature


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (asked(messages=[seen(PNG)]), "images"),
        (asked(tools=[pb.Tool(name="f")]), "tools"),
        (asked(response_format=pb.ResponseFormat(json_schema="{}")), "response_format.json_schema"),
        (asked(reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_LOW)), "reasoning.effort"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(request_, feature):
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request_, routed("gemini-x", capabilities=["generate"]))
    assert caught.value.metadata["feature"] == feature


# Reasoning


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        (FLASH, pb.REASONING_EFFORT_UNSPECIFIED, {"includeThoughts": True}),
        (FLASH, pb.REASONING_EFFORT_LOW, {"thinkingLevel": "LOW", "includeThoughts": True}),
        (PRO, pb.REASONING_EFFORT_HIGH, {"thinkingLevel": "HIGH", "includeThoughts": True}),
        (OLDER, pb.REASONING_EFFORT_MEDIUM, {"thinkingBudget": 8192, "includeThoughts": True}),
        # Without thinking, asking for thoughts is an error.
        (OLDER, pb.REASONING_EFFORT_NONE, {"thinkingBudget": 0}),
        (OLDER, pb.REASONING_EFFORT_UNSPECIFIED, None),
    ],
)
def test_effort_and_thoughts(model, effort, thinking):
    body = encoded(asked(reasoning=pb.Reasoning(effort=effort)), routed(model))
    assert body.get("generationConfig", {}).get("thinkingConfig") == thinking


def test_effort_stands_beside_sampling_and_thoughts_are_left_out_unless_wanted():
    wish = pb.Reasoning(effort=pb.REASONING_EFFORT_LOW, include=False)
    body = encoded(asked(sampling=pb.Sampling(max_tokens=9), reasoning=wish))
    assert body["generationConfig"] == {
        "maxOutputTokens": 9,
        "thinkingConfig": {"thinkingLevel": "LOW"},
    }
    # What profiles say is shared by all requests and must not have been written to.
    rules = built_in_profiles()["gemini"].reasoning.effort["low"]
    assert rules == {"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}}}


# Conversations


def test_conversation_with_tools():
    messages = [
        said("be brief", pb.ROLE_SYSTEM),
        said("be kind", pb.ROLE_SYSTEM),
        said("weather and time?"),
        turn("Let me look.", [called("weather", '{"city":"Köln"}'), called("clock", "", "c2", 1)]),
        answered("rain"),
        answered('{"hour": 9}', "c2"),
        said("thanks"),
    ]
    body = encoded(asked(messages=messages), routed(OLDER))
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}, {"text": "be kind"}]}
    weather = {"id": "c1", "name": "weather", "args": {"city": "Köln"}}
    clock = {"id": "c2", "name": "clock", "args": {}}
    rain = {"id": "c1", "name": "weather", "response": {"output": "rain"}}
    hour = {"id": "c2", "name": "clock", "response": {"output": {"hour": 9}}}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "weather and time?"}]},
        {
            "role": "model",
            "parts": [
                {"text": "Let me look."},
                {"functionCall": weather},
                {"functionCall": clock},
            ],
        },
        {"role": "user", "parts": [{"functionResponse": rain}, {"functionResponse": hour}]},
        {"role": "user", "parts": [{"text": "thanks"}]},
    ]


def test_an_id_that_is_used_again_means_the_latest_call():
    messages = [
        said("?"),
        turn(calls=[called("first", "", "call_0")]),
        answered("1", "call_0"),
        turn(calls=[called("second", "", "call_0")]),
        answered("2", "call_0"),
    ]
    contents = encoded(asked(messages=messages))["contents"]
    named = [contents[n]["parts"][0]["functionResponse"]["name"] for n in (2, 4)]
    assert named == ["first", "second"]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([said("?"), answered("rain")], "messages[1].tool_call_id"),
        ([said("?"), turn(calls=[called("f")]), answered("x", "c9")], "messages[2].tool_call_id"),
        ([said("?"), turn(calls=[called("f", "[1]")])], "messages[1].tool_calls[0].arguments"),
        ([said("?"), turn(calls=[called("f", "{")])], "messages[1].tool_calls[0].arguments"),
    ],
)
def test_conversations_that_do_not_fit_together_are_refused(messages, field):
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(asked(messages=messages), routed())
    assert reason_name(caught.value.reason) == "INVALID_REQUEST"
    assert [v.field for v in caught.value.violations] == [field]


def test_images_travel_inline_or_by_address():
    address = pb.Image(uri="https://h/a.webp", media_type="image/webp")
    content = [pb.ContentPart(text="what?"), pb.ContentPart(image=PNG)]
    content.append(pb.ContentPart(image=address))
    body = encoded(asked(messages=[pb.Message(role=pb.ROLE_USER, content=content)]))
    assert body["contents"][0]["parts"] == [
        {"text": "what?"},
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://h/a.webp"}},
    ]


def test_tools_and_their_choice():
    tools = [
        pb.Tool(name="f", description="d", parameters_json_schema='{"type":"object"}'),
        pb.Tool(name="g"),
    ]
    body = encoded(asked(tools=tools))
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "f", "description": "d", "parametersJsonSchema": {"type": "object"}},
                {"name": "g"},
            ]
        }
    ]
    assert "toolConfig" not in body
    for choice, expected in [
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE), {"mode": "NONE"}),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), {"mode": "ANY"}),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="g"),
         {"mode": "ANY", "allowedFunctionNames": ["g"]}),
    ]:  # fmt: skip
        chosen = encoded(asked(tools=tools, tool_choice=choice))
        assert chosen["toolConfig"] == {"functionCallingConfig": expected}


def test_response_formats():
    anything = pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    config = encoded(asked(response_format=anything), routed(OLDER))["generationConfig"]
    assert config == {"responseMimeType": "application/json"}
    exact = pb.ResponseFormat(json_schema='{"type":"object"}')
    config = encoded(asked(response_format=exact), routed(OLDER))["generationConfig"]
    assert config == {
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
    }
    free = pb.ResponseFormat(text=pb.ResponseFormat.FreeText())
    assert "generationConfig" not in encoded(asked(response_format=free), routed(OLDER))
