"""The OpenAI chat codec: recorded streams under any split, and requests as profiles allow."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.answer import (
    Ending,
    FailureKind,
    Finish,
    ProviderFailure,
    ProviderUsage,
)
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.openai_chat import OpenAiChat
from services.cloud_proxy.sse import SseReader
from tests.support.provider import route

RECORDINGS = Path(__file__).parent / "recordings"
ANY_SPLIT = settings(
    max_examples=200,
    suppress_health_check=[
        *settings.default.suppress_health_check,
        HealthCheck.function_scoped_fixture,
    ],
)
MODELS = {
    "deepseek": "deepseek-v4-flash",
    "openai": "gpt-4.1",
    "azure-openai": "gpt",
    "moonshot": "kimi-k2",
    "openai-compatible": "x/y",
    "simulator": "sim-chat",
}
BASE = {"azure-openai": "https://r.openai.azure.com", "openai-compatible": "https://h",
        "simulator": "http://127.0.0.1:1"}  # fmt: skip
CODEC = OpenAiChat()


READ: dict[str, Route] = {}


def routed(tmp_path, provider):
    if provider not in READ:
        where = {"base_url": BASE[provider]} if provider in BASE else {}
        READ[provider] = route(tmp_path, provider, MODELS[provider], **where)
    return READ[provider]


def asked(**fields) -> pb.GenerateRequest:
    fields.setdefault("messages", [said("hello")])
    return pb.GenerateRequest(model="m", **fields)


def said(text: str, role=pb.ROLE_USER) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=text)])


class Heard:
    """What a stream said, joined."""

    def __init__(self, route_, pieces: list[bytes], request=None) -> None:
        self.text: dict[int, str] = {}
        self.reasoning = ""
        self.calls: dict[int, list[str]] = {}
        self.heads: list[tuple[int, str, str]] = []
        decoder = CODEC.decoder(request or asked(), route_)
        reader = SseReader()
        events = [e for piece in pieces for e in reader.feed(piece)] + reader.close()
        for event in events:
            for delta in decoder.event(event):
                self.text[delta.choice] = self.text.get(delta.choice, "") + delta.text
                self.reasoning += delta.reasoning
                for tool in delta.tools:
                    self.calls.setdefault(tool.index, []).append(tool.arguments)
                    if tool.id or tool.name:
                        self.heads.append((tool.index, tool.id, tool.name))
        self.ending: Ending = decoder.ending()

    @property
    def arguments(self) -> list[object]:
        return [json.loads("".join(parts)) for _, parts in sorted(self.calls.items())]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


def recording(name: str) -> bytes:
    return (RECORDINGS / f"{name}.sse").read_bytes()


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@ANY_SPLIT
@given(cuts=CUTS)
@pytest.mark.parametrize(
    ("provider", "name", "text", "reasoning", "finish", "usage"),
    [
        ("deepseek", "deepseek", "Grüße, 世界 🌊", "Die Frage ist 简单.", Finish.STOP,
         ProviderUsage(130, 128, 17, 9)),
        ("openai", "openai", "Hello – 你好", "", Finish.STOP, ProviderUsage(19, 0, 10, 0)),
        ("azure-openai", "azure", "Ça va bien", "", Finish.LENGTH, ProviderUsage(11, 8, 4, 0)),
        ("moonshot", "moonshot", "你好,月亮", "", Finish.STOP, ProviderUsage(22, 20, 6, 0)),
    ],
)  # fmt: skip
def test_recording_gives_the_same_answer_under_any_split(
    tmp_path, provider, name, text, reasoning, finish, usage, cuts
):
    there = routed(tmp_path, provider)
    heard = Heard(there, split(recording(name), cuts))
    assert heard.text == {0: text}
    assert heard.reasoning == reasoning
    assert heard.ending.finishes == {0: finish}
    assert heard.ending.usage == usage


@ANY_SPLIT
@given(cuts=CUTS)
def test_parallel_tool_fragments_go_by_index_and_reasoning_is_kept(tmp_path, cuts):
    there = routed(tmp_path, "deepseek")
    heard = Heard(there, split(recording("deepseek_tools"), cuts))
    assert heard.heads == [(0, "call_0_x", "weather"), (1, "call_1_y", "weather")]
    assert heard.arguments == [{"city": "Köln"}, {"city": "上海"}]
    assert heard.ending.finishes == {0: Finish.TOOL_CALLS}
    assert heard.ending.replay == {0: b"Two cities, two calls."}
    assert heard.ending.usage == ProviderUsage(40, 0, 60, 5)


def test_text_and_tools_end_with_tool_calls_and_no_arguments_are_an_object(tmp_path):
    heard = Heard(routed(tmp_path, "openai"), [recording("openai_tools")])
    assert heard.text == {0: "Let me look."}
    assert heard.arguments == [{}]
    assert heard.ending.finishes == {0: Finish.TOOL_CALLS}


def test_error_inside_a_stream_is_a_failure_after_what_came_before(tmp_path):
    there = routed(tmp_path, "openai-compatible")
    with pytest.raises(ProviderFailure) as caught:
        Heard(there, [recording("openrouter_error")])
    assert caught.value.kind is FailureKind.FAILED
    assert caught.value.http_status == 502


@pytest.mark.parametrize("name", ["deepseek", "openai", "azure", "moonshot", "deepseek_tools"])
def test_every_truncation_of_a_recording_is_a_failure(tmp_path, name):
    provider = {"azure": "azure-openai", "deepseek_tools": "deepseek"}.get(name, name)
    there = routed(tmp_path, provider)
    data = recording(name)
    # A cut inside the terminal marker itself is still a cut.
    whole = data.index(b"[DONE]") + len(b"[DONE]")
    for end in range(0, whole, 7):
        with pytest.raises(ProviderFailure) as caught:
            Heard(there, [data[:end]])
        assert caught.value.kind is FailureKind.BROKEN


def sse(*documents) -> list[bytes]:
    lines = [b"data: " + json.dumps(d).encode() + b"\n\n" for d in documents]
    return [*lines, b"data: [DONE]\n\n"]


def choice(index=0, finish=None, **delta):
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def call(index, arguments="", *, name=None, **more):
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"function": function, **({} if index is None else {"index": index}), **more}


@pytest.mark.parametrize(
    ("provider", "reason", "expected"),
    [
        ("openai", "stop", Finish.STOP),
        ("openai", "length", Finish.LENGTH),
        ("openai", "content_filter", Finish.CONTENT_FILTER),
        ("simulator", "sensitive", Finish.CONTENT_FILTER),
    ],
)
def test_finish_reasons(tmp_path, provider, reason, expected):
    heard = Heard(routed(tmp_path, provider), sse(choice(content="a"), choice(finish=reason)))
    assert heard.ending.finishes == {0: expected}


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("deepseek", "insufficient_system_resource"),
        ("simulator", "network_error"),
        ("openai", "never_heard_of"),
        ("openai", "function_call"),
    ],
)
def test_failing_and_unknown_finish_reasons_are_failures(tmp_path, provider, reason):
    with pytest.raises(ProviderFailure) as caught:
        Heard(routed(tmp_path, provider), sse(choice(content="a"), choice(finish=reason)))
    assert caught.value.code == reason


def test_length_after_tools_stays_length_and_half_arguments_are_allowed(tmp_path):
    there = routed(tmp_path, "openai")
    cut = call(0, '{"a', id="c", name="f")
    heard = Heard(there, sse(choice(tool_calls=[cut]), choice(finish="length")))
    assert heard.ending.finishes == {0: Finish.LENGTH}


@pytest.mark.parametrize(
    "events",
    [
        [choice(tool_calls=[call(0, '{"a', id="c", name="f")]), choice(finish="tool_calls")],
        [choice(content="a"), choice(finish="tool_calls")],
        [choice(tool_calls=[call(0, "{}", id="c")]), choice(finish="tool_calls")],
        [choice(tool_calls=[call(999, "{}", id="c", name="f")]), choice(finish="tool_calls")],
        [choice(index=3, content="a"), choice(finish="stop")],
        [choice(content="a")],
        [["no object"]],
        [{"choices": ["no object"]}],
    ],
)
def test_answers_that_break_their_promises_are_failures(tmp_path, events):
    with pytest.raises(ProviderFailure) as caught:
        Heard(routed(tmp_path, "openai"), sse(*events))
    assert caught.value.kind is FailureKind.BROKEN


def test_tool_fragments_without_index_follow_their_ids(tmp_path):
    heard = Heard(
        routed(tmp_path, "openai"),
        sse(
            choice(tool_calls=[call(None, '{"a":', id="x", name="f")]),
            choice(tool_calls=[call(None, "1}")]),
            choice(tool_calls=[call(None, '{"b":2}', id="y", name="g")]),
            choice(finish="stop"),
        ),
    )
    assert heard.heads == [(0, "x", "f"), (1, "y", "g")]
    assert heard.arguments == [{"a": 1}, {"b": 2}]


def test_choices_are_kept_apart_and_each_must_finish(tmp_path):
    there = routed(tmp_path, "openai")
    request = asked(sampling=pb.Sampling(n=2))
    events = [choice(1, content="b"), choice(0, content="a"), choice(1, finish="length")]
    with pytest.raises(ProviderFailure):
        Heard(there, sse(*events), request)
    heard = Heard(there, sse(*events, choice(0, finish="stop")), request)
    assert heard.text == {0: "a", 1: "b"}
    assert heard.ending.finishes == {0: Finish.STOP, 1: Finish.LENGTH}


def test_refusal_is_told_as_text_and_content_filter(tmp_path):
    there = routed(tmp_path, "openai")
    heard = Heard(there, sse(choice(refusal="I will not."), choice(finish="stop")))
    assert heard.text == {0: "I will not."}
    assert heard.ending.finishes == {0: Finish.CONTENT_FILTER}


def test_whole_answer_without_stream(tmp_path):
    message = {"role": "assistant", "content": "hi", "tool_calls": None, "reasoning_content": "h"}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    decoder = CODEC.decoder(asked(), routed(tmp_path, "deepseek"))
    (delta,) = decoder.whole(json.dumps(body).encode())
    assert (delta.text, delta.reasoning) == ("hi", "h")
    assert decoder.ending().usage == ProviderUsage(3, 0, 1, 0)


@ANY_SPLIT
@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_provider_failure(tmp_path, data):
    there = routed(tmp_path, "openai")
    with pytest.raises(ProviderFailure):
        Heard(there, [b"data: " + data])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "index", "usage", "error", "tool_calls", "function", "name", "id",
             "arguments", "content", "finish_reason", "prompt_tokens", "completion_tokens", "code"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@ANY_SPLIT
@given(document=JSON)
def test_no_json_raises_anything_but_a_provider_failure(tmp_path, document):
    there = routed(tmp_path, "openai")
    body = json.dumps(document).encode()
    with contextlib.suppress(ProviderFailure):
        Heard(there, [b"data: " + body + b"\n\ndata: [DONE]\n\n"])
    assert CODEC.decode_error(500, {}, body).kind is not FailureKind.REFUSED_REQUEST


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
