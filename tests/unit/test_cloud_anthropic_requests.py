"""The Anthropic codec writes requests as the API documents them and as the profile allows."""

import json
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.profile_files import built_in_profiles
from tests.support.anthropic import CODEC, HAIKU, OPUS, SONNET, asked, effort, routed, said
from tests.support.recordings import route_to

NONE, LOW, HIGH = pb.REASONING_EFFORT_NONE, pb.REASONING_EFFORT_LOW, pb.REASONING_EFFORT_HIGH
WEATHER = pb.Tool(name="weather", description="d", parameters_json_schema='{"type":"object"}')
FORCED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
SCHEMA = pb.ResponseFormat(json_schema='{"type":"object","additionalProperties":false}')
THINKING = {"type": "thinking", "thinking": "It rains.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "ZGF0YQ=="}


def encoded(request, model=HAIKU, **more) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(CODEC.encode_request(request, routed(model), **more).body)
    return body


def refused(request, model=HAIKU, **more) -> Fault:
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(request, routed(model), **more)
    return caught.value


def called(identity="toolu_1", arguments='{"city":"Köln"}', **more) -> pb.Message:
    call = pb.ToolCall(index=0, id=identity, name="weather", arguments=arguments)
    return pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call], **more)


def answered(identity="toolu_1", words="rain") -> pb.Message:
    return said(words, pb.ROLE_TOOL, tool_call_id=identity)


def state(*blocks, provider="anthropic") -> pb.ReasoningState:
    return pb.ReasoningState(provider=provider, data=json.dumps(blocks).encode())


def shown(image: pb.Image) -> pb.GenerateRequest:
    part = pb.ContentPart(image=image)
    return asked(messages=[pb.Message(role=pb.ROLE_USER, content=[part])])


# The request as a whole


def test_smallest_request_states_model_limit_and_stream():
    sent = CODEC.encode_request(asked(), routed())
    assert (sent.path, sent.framing, sent.dropped) == ("/v1/messages", Framing.SSE, ())
    assert json.loads(sent.body) == {
        "model": HAIKU,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_tokens": 64000,
        "stream": True,
    }


def test_route_names_key_header_and_version():
    profile = routed().profile
    assert (profile.auth_scheme, profile.auth_header) == ("header", "x-api-key")
    assert profile.headers == {"anthropic-version": "2023-06-01"}
    assert routed().base_url == "https://api.anthropic.com"


def test_model_that_does_not_stream_is_asked_for_a_whole_answer():
    there = route_to("anthropic", HAIKU, streaming=False)
    sent = CODEC.encode_request(asked(), there)
    assert sent.framing is None
    assert "stream" not in json.loads(sent.body)


def test_every_listed_model_can_be_asked_and_states_its_limit():
    models = [m for m in built_in_profiles()["anthropic"].models if m]
    assert HAIKU in models
    for model in models:
        body = json.loads(CODEC.encode_request(asked(), route_to("anthropic", model)).body)
        assert body["model"] == model
        assert body["max_tokens"] == 8192


def test_sampling_goes_under_the_names_of_the_api():
    sampling = pb.Sampling(max_tokens=9, temperature=0, top_k=5, stop=["a", "b"])
    body = encoded(asked(sampling=sampling))
    assert body["max_tokens"] == 9
    assert body["temperature"] == 0
    assert body["top_k"] == 5
    assert body["stop_sequences"] == ["a", "b"]
    assert encoded(asked(sampling=pb.Sampling(top_p=0.7)))["top_p"] == 0.7


def test_limit_that_the_budget_sets_stays_within_what_the_model_can():
    request = asked(sampling=pb.Sampling(max_tokens=500))
    assert encoded(request, max_tokens=7)["max_tokens"] == 7
    assert encoded(asked(), max_tokens=10**9)["max_tokens"] == 64000


def test_temperature_with_a_top_p_that_asks_for_nothing_goes_alone():
    body = encoded(asked(sampling=pb.Sampling(temperature=0.7, top_p=1)))
    assert body["temperature"] == 0.7
    assert "top_p" not in body


def test_values_that_ask_for_nothing_are_not_refused():
    neutral = pb.Sampling(top_k=-1, min_p=0, repetition_penalty=1, min_tokens=0, n=1)
    body = encoded(asked(sampling=neutral))
    assert set(body) == {"model", "messages", "max_tokens", "stream"}
    assert CODEC.encode_request(asked(sampling=neutral), routed(OPUS)).dropped == ()


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (asked(sampling=pb.Sampling(n=2)), "sampling.n"),
        (asked(sampling=pb.Sampling(seed=1)), "sampling.seed"),
        (asked(sampling=pb.Sampling(min_p=0.1)), "sampling.min_p"),
        (asked(sampling=pb.Sampling(presence_penalty=1)), "sampling.presence_penalty"),
        (asked(sampling=pb.Sampling(ignore_eos=True)), "sampling.ignore_eos"),
        (asked(sampling=pb.Sampling(logprobs=0)), "sampling.logprobs"),
        (asked(sampling=pb.Sampling(temperature=1.5)), "sampling.temperature"),
        (asked(sampling=pb.Sampling(temperature=0.5, top_p=0.5)), "sampling.top_p"),
        (asked(sampling=pb.Sampling(max_tokens=64001)), "sampling.max_tokens"),
        (asked(messages=[], prompt="raw"), "prompt"),
        (asked(messages=[], prompt_token_ids=[1]), "prompt_token_ids"),
        (asked(messages=[said("be brief", pb.ROLE_SYSTEM)]), "messages"),
        (asked(messages=[said("hi"), said("hello", pb.ROLE_ASSISTANT)]), "messages"),
        (asked(continuation=pb.Continuation(token_ids=[1])), "continuation.token_ids"),
        (asked(continuation=pb.Continuation(text="Once upon ")), "continuation.text"),
        (asked(continuation=pb.Continuation(text="{"), response_format=SCHEMA),
         "continuation.text"),
        (asked(response_format=pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())),
         "response_format.json_object"),
        (asked(response_format=pb.ResponseFormat(regex="a")), "response_format.regex"),
        (shown(pb.Image(data=b"x", media_type="image/tiff")), "images"),
        (asked(messages=[pb.Message(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(
            image=pb.Image(uri="https://h/a.png"))]), said("hi")]), "images"),
        # Moved to the front it would say something else.
        (asked(messages=[said("hi"), said("be kind", pb.ROLE_SYSTEM)]), "messages"),
    ],
)  # fmt: skip
def test_what_the_api_cannot_do_is_refused_by_name(request_, feature):
    fault = refused(request_)
    assert reason_name(fault.reason) == "UNSUPPORTED"
    assert fault.metadata["feature"] == feature


def test_embeddings_are_refused():
    with pytest.raises(Fault) as caught:
        CODEC.encode_embed(model_pb2.EmbedRequest(model="m", inputs=["a"]), routed())
    assert caught.value.metadata["feature"] == "embed"


# The conversation


def test_system_messages_are_joined_apart_from_the_turns():
    messages = [said("be brief", pb.ROLE_SYSTEM), said("be kind", pb.ROLE_SYSTEM), said("hi")]
    body = encoded(asked(messages=messages))
    assert body["system"] == [
        {"type": "text", "text": "be brief"},
        {"type": "text", "text": "be kind"},
    ]
    assert [m["role"] for m in body["messages"]] == ["user"]


def test_results_of_one_turn_come_back_in_one_message_with_what_is_said_after_them():
    calls = pb.Message(
        role=pb.ROLE_ASSISTANT,
        content=[pb.ContentPart(text="Two."), pb.ContentPart(text="")],
        tool_calls=[
            pb.ToolCall(index=0, id="toolu_1", name="weather", arguments='{"city":"Köln"}'),
            pb.ToolCall(index=1, id="toolu_2", name="clock"),
        ],
    )
    silent = pb.Message(role=pb.ROLE_TOOL, tool_call_id="toolu_2")
    messages = [said("?"), calls, answered(), silent, said("Well?")]
    assert encoded(asked(messages=messages, tools=[WEATHER]))["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Two."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "rain"}],
                },
                {"type": "tool_result", "tool_use_id": "toolu_2"},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]


def test_ids_of_other_providers_are_written_so_that_the_api_takes_them():
    foreign = "functions.weather:0"
    messages = [said("?"), called(foreign), answered(foreign)]
    turns = encoded(asked(messages=messages, tools=[WEATHER]))["messages"]
    identity = turns[1]["content"][0]["id"]
    assert identity == turns[2]["content"][0]["tool_use_id"]
    assert identity.replace("_", "").isalnum()


@pytest.mark.parametrize("arguments", ["{", "[1]", '"text"'])
def test_arguments_that_are_no_object_are_invalid(arguments):
    fault = refused(asked(messages=[said("?"), called(arguments=arguments), answered()]))
    assert [v.field for v in fault.violations] == ["messages[1].tool_calls[0].arguments"]


def test_arguments_nested_deeper_than_can_be_written_are_invalid():
    deep = '{"a":' * 400 + "1" + "}" * 400
    fault = refused(asked(messages=[said("?"), called(arguments=deep), answered()]))
    assert reason_name(fault.reason) == "INVALID_REQUEST"


def test_images_travel_as_base64_or_by_address():
    inline = pb.Image(data=b"\x89PNG", media_type="image/png")
    assert encoded(shown(inline))["messages"][0]["content"] == [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="},
        }
    ]
    linked = pb.Image(uri="https://h.example/a.png")
    assert encoded(shown(linked))["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://h.example/a.png"}}
    ]


def test_images_are_refused_where_the_model_does_not_see_them():
    blind = route_to("anthropic", HAIKU, capabilities=["generate"])
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(shown(pb.Image(uri="https://h/a.png")), blind)
    assert caught.value.metadata["feature"] == "images"


def test_continuation_is_a_last_turn_of_the_assistant_without_thinking():
    request = asked(continuation=pb.Continuation(text="Once", token_ids=[7]))
    turns = encoded(request)["messages"]
    assert turns[-1] == {"role": "assistant", "content": [{"type": "text", "text": "Once"}]}
    for model in (OPUS, SONNET, "claude-sonnet-4-6"):
        assert refused(request, model).metadata["feature"] == "continuation.text"
    request.reasoning.effort = LOW
    assert refused(request).metadata["feature"] == "continuation.text"


# Tools and form


def test_tools_and_their_choice():
    modes = {
        pb.ToolChoice.MODE_AUTO: {"type": "auto"},
        pb.ToolChoice.MODE_NONE: {"type": "none"},
        pb.ToolChoice.MODE_REQUIRED: {"type": "any"},
    }
    for mode, choice in modes.items():
        body = encoded(asked(tools=[WEATHER], tool_choice=pb.ToolChoice(mode=mode)))
        assert body["tool_choice"] == choice
    named = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="weather")
    body = encoded(asked(tools=[WEATHER, pb.Tool(name="clock")], tool_choice=named))
    assert body["tool_choice"] == {"type": "tool", "name": "weather"}
    assert body["tools"] == [
        {"name": "weather", "description": "d", "input_schema": {"type": "object"}},
        {"name": "clock", "input_schema": {"type": "object"}},
    ]
    assert "tool_choice" not in encoded(asked(tools=[WEATHER]))


def test_schema_of_the_answer():
    body = encoded(asked(response_format=SCHEMA, reasoning=effort(HIGH)), OPUS)
    assert body["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {"type": "object", "additionalProperties": False},
        },
        "effort": "high",
    }
    fault = refused(asked(response_format=pb.ResponseFormat(json_schema="{")))
    assert [v.field for v in fault.violations] == ["response_format.json_schema"]


# Thinking


def test_each_generation_is_told_to_think_in_its_own_way():
    shown_ = {"type": "adaptive", "display": "summarized"}
    low = asked(reasoning=effort(LOW))
    assert encoded(low)["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert encoded(low, OPUS)["thinking"] == shown_
    assert encoded(low, OPUS)["output_config"] == {"effort": "low"}
    off = asked(reasoning=effort(NONE))
    assert encoded(off)["thinking"] == {"type": "disabled"}
    assert encoded(off, "claude-haiku-5-5")["thinking"] == {"type": "disabled"}
    assert encoded(off, SONNET)["thinking"] == {"type": "between_tools"}
    assert refused(off, OPUS).metadata["feature"] == "reasoning.effort"


def test_models_that_think_unless_told_not_to_show_it():
    assert encoded(asked(), OPUS)["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert "output_config" not in encoded(asked(), OPUS)
    assert "thinking" not in encoded(asked(), "claude-opus-4-8")
    assert "thinking" not in encoded(asked(), HAIKU)


def test_budget_must_leave_something_for_the_answer():
    wish = effort(LOW)
    fits = asked(reasoning=wish, sampling=pb.Sampling(max_tokens=2049))
    assert encoded(fits)["max_tokens"] == 2049
    for request, more in [
        (asked(reasoning=wish, sampling=pb.Sampling(max_tokens=2048)), {}),
        (asked(reasoning=wish), {"max_tokens": 100}),
    ]:
        assert refused(request, **more).metadata["feature"] == "reasoning.effort"


def test_sampling_is_dropped_visibly_while_thinking_and_by_models_that_take_none():
    warm = pb.Sampling(temperature=0.5, top_p=0.9, top_k=3)
    thinking = CODEC.encode_request(asked(sampling=warm, reasoning=effort(LOW)), routed())
    assert set(thinking.dropped) == {"temperature", "top_p", "top_k"}
    fixed = CODEC.encode_request(asked(sampling=warm), routed("claude-opus-4-8"))
    assert set(fixed.dropped) == {"temperature", "top_p", "top_k"}
    for sent in (thinking, fixed):
        assert not {"temperature", "top_p", "top_k"} & set(json.loads(sent.body))
    plain = CODEC.encode_request(
        asked(sampling=pb.Sampling(temperature=0.5), reasoning=effort(NONE)), routed()
    )
    assert plain.dropped == ()
    assert json.loads(plain.body)["temperature"] == 0.5


def test_tools_cannot_be_forced_on_a_model_that_thinks():
    forced = asked(tools=[WEATHER], tool_choice=FORCED)
    assert encoded(forced)["tool_choice"] == {"type": "any"}
    for model in (OPUS, SONNET):
        assert refused(forced, model).metadata["feature"] == "tool_choice"
    forced.reasoning.effort = LOW
    assert refused(forced).metadata["feature"] == "tool_choice"
    forced.reasoning.effort = NONE
    assert encoded(forced, "claude-haiku-5-5")["tool_choice"] == {"type": "any"}
    # The nearest that this model has to not thinking is thinking all the same.
    assert refused(forced, SONNET).metadata["feature"] == "tool_choice"


def test_own_thinking_is_replayed_unchanged_and_first():
    turn = called(
        content=[pb.ContentPart(text="Look.")],
        reasoning_state=[
            state(THINKING, REDACTED),
            pb.ReasoningState(provider="deepseek", data=b"\x00 anything"),
        ],
    )
    turns = encoded(asked(messages=[said("?"), turn, answered()], tools=[WEATHER]), OPUS)
    assert turns["messages"][1]["content"] == [
        THINKING,
        REDACTED,
        {"type": "text", "text": "Look."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        b'"text"',
        b"[1]",
        b"[{}]",
        json.dumps([{"type": "text", "text": "I may do anything."}]).encode(),
        json.dumps([{"type": "tool_use", "id": "a", "name": "f", "input": {}}]).encode(),
        json.dumps([THINKING, {**THINKING, "signature": 7}]).encode(),
        json.dumps([{**THINKING, "type": ["thinking"]}]).encode(),
        json.dumps([{**THINKING, "cache_control": "x"}]).encode(),
        json.dumps([{"type": "thinking", "thinking": "x"}]).encode(),
        json.dumps([{**REDACTED, "text": "x"}]).encode(),
    ],
)
def test_state_that_was_never_given_out_is_invalid(data):
    turn = called(reasoning_state=[pb.ReasoningState(provider="anthropic", data=data)])
    fault = refused(asked(messages=[said("?"), turn, answered()]))
    assert reason_name(fault.reason) == "INVALID_REQUEST"
    assert [v.field for v in fault.violations] == ["messages[1].reasoning_state[0].data"]


# Counts


def test_count_is_asked_for_the_prompt_alone():
    request = asked(
        messages=[said("be brief", pb.ROLE_SYSTEM), said("hi")],
        sampling=pb.Sampling(max_tokens=9, temperature=0.5, n=2),
        tools=[WEATHER],
    )
    sent = CODEC.encode_count(request, routed())
    assert sent is not None
    assert (sent.path, sent.framing) == ("/v1/messages/count_tokens", None)
    assert set(json.loads(sent.body)) == {"model", "system", "messages", "tools"}
