"""The Anthropic codec reads: what its streams and whole answers mean, and what breaks them."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cloud_proxy.answer import Ending, FailureKind, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.streams import StreamEvent
from tests.support.anthropic import CODEC, HAIKU, asked, routed
from tests.support.recordings import RECORDINGS, Heard, hear, load

MANY = settings(max_examples=200)


def sse(*documents) -> bytes:
    lines = [f"event: {d['type']}\ndata: {json.dumps(d)}\n\n" for d in documents]
    return "".join(lines).encode()


def heard(*documents) -> Heard:
    return hear(routed(), asked(), Framing.SSE, [sse(*documents)])


def begun(**usage):
    return {"type": "message_start", "message": {"content": [], "usage": usage}}


def opened(index=0, **block):
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index=0, **delta):
    return {"type": "content_block_delta", "index": index, "delta": delta}


def text(words, index=0):
    return more(index, type="text_delta", text=words)


def ended(reason="end_turn", sequence=None, **usage):
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return {"type": "message_delta", "delta": delta, "usage": usage}


BLANK = opened(type="text", text="")
STOP = {"type": "message_stop"}
TOOL = opened(type="tool_use", id="t", name="f", input={})


def whole(**fields) -> tuple[Heard, Ending]:
    decoder = CODEC.decoder(asked(), routed())
    said = Heard()
    said.take(decoder.whole(json.dumps({"type": "message", **fields}).encode()))
    return said, decoder.ending()


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_stop_reasons(reason, finish):
    assert heard(BLANK, text("a"), ended(reason), STOP).finish == {"0": finish}


@pytest.mark.parametrize("reason", ["pause_turn", "never_heard_of"])
def test_unfinished_and_unknown_stop_reasons_are_failures(reason):
    with pytest.raises(ProviderFailure) as caught:
        heard(BLANK, text("a"), ended(reason), STOP)
    assert caught.value.kind is FailureKind.FAILED
    assert caught.value.code == reason


@pytest.mark.parametrize("name", ["overloaded", "pause_turn", "no_message_stop", "unknown_output"])
def test_output_before_a_failure_was_delivered(name):
    recording = load(RECORDINGS / "anthropic" / f"{name}.json")
    with pytest.raises(ProviderFailure) as caught:
        recording.hear([recording.data])
    assert caught.value.heard.text["0"]


def test_errors_inside_a_stream_are_told_apart():
    for code, kind in [
        ("rate_limit_error", FailureKind.BUSY),
        ("overloaded_error", FailureKind.FAILED),
        ("api_error", FailureKind.FAILED),
        ("timeout_error", FailureKind.FAILED),
    ]:
        with pytest.raises(ProviderFailure) as caught:
            heard({"type": "error", "error": {"type": code, "message": "sk-ant-secret"}})
        assert (caught.value.kind, caught.value.code) == (kind, code)
        assert "sk-ant-secret" not in caught.value.message


def test_event_without_a_type_is_known_by_its_name():
    data = b'event: message_stop\ndata: {}\n\nevent: error\ndata: {"type":"error"}\n\n'
    stream = sse(BLANK, text("a"), ended()) + data
    assert hear(routed(), asked(), Framing.SSE, [stream]).text == {"0": "a"}
    with pytest.raises(ProviderFailure) as caught:
        hear(routed(), asked(), Framing.SSE, [b"event: error\ndata: {}\n\n"])
    assert caught.value.kind is FailureKind.FAILED


def test_what_follows_message_stop_says_nothing():
    failure = {"type": "error", "error": {"type": "api_error"}}
    assert heard(BLANK, text("a"), ended(), STOP, failure).text == {"0": "a"}


# Usage


def test_prompt_holds_what_was_read_from_and_written_to_the_cache():
    start = begun(input_tokens=3, cache_read_input_tokens=50, cache_creation_input_tokens=7)
    said = heard(start, BLANK, text("a"), ended(output_tokens=2), STOP)
    assert said.usage == {
        "prompt": 60, "cached": 50, "completion": 2, "reasoning": 0, "cache_written": 7
    }  # fmt: skip


def test_later_counts_replace_and_absent_ones_keep():
    start = begun(input_tokens=3, cache_read_input_tokens=50, output_tokens=1)
    first = ended(None, output_tokens=5, input_tokens=4)
    last = ended(output_tokens=9, cache_read_input_tokens=None)
    said = heard(start, BLANK, text("a"), first, last, STOP)
    assert said.usage["prompt"] == 54
    assert said.usage["cached"] == 50
    assert said.usage["completion"] == 9


def test_usage_is_known_from_the_start_for_a_partial_account():
    decoder = CODEC.decoder(asked(), routed())
    assert decoder.usage is None
    start = begun(input_tokens=3, output_tokens=1)
    decoder.event(StreamEvent("message_start", json.dumps(start).encode()))
    assert decoder.usage == ProviderUsage(3, 0, 1, 0)


def test_reasoning_tokens_are_never_more_than_the_output():
    details = {"thinking_tokens": 99}
    said = heard(begun(input_tokens=1), ended(output_tokens=5, output_tokens_details=details), STOP)
    assert said.usage["reasoning"] == 5


def test_answer_without_usage_has_none():
    assert heard(BLANK, text("a"), ended(), STOP).usage is None


def test_counts_beyond_the_contract_are_capped():
    huge = 2**31 - 1
    said = heard(begun(input_tokens=huge, cache_read_input_tokens=huge), ended(), STOP)
    assert said.usage["prompt"] == huge


# Tools and thinking


def test_arguments_are_joined_by_block_even_when_blocks_are_interleaved():
    said = heard(
        BLANK,
        opened(1, type="tool_use", id="a", name="f", input={}),
        opened(2, type="tool_use", id="b", name="g", input={}),
        more(2, type="input_json_delta", partial_json='{"y":'),
        more(1, type="input_json_delta", partial_json='{"x":1}'),
        more(2, type="input_json_delta", partial_json="2}"),
        ended("tool_use"),
        STOP,
    )
    assert [c["arguments"] for c in said.calls["0"]] == ['{"x":1}', '{"y":2}']


def test_input_that_comes_with_the_block_is_not_lost():
    block = opened(type="tool_use", id="a", name="f", input={"x": 1})
    said = heard(block, ended("tool_use"), STOP)
    assert said.calls["0"] == [{"id": "a", "name": "f", "arguments": '{"x":1}'}]


def test_text_and_tools_end_with_tool_calls_whatever_the_reason_says():
    assert heard(TOOL, ended("end_turn"), STOP).finish == {"0": "tool_calls"}


def test_thinking_without_its_signature_is_shown_but_not_kept():
    said = heard(
        opened(type="thinking", thinking="", signature=""),
        more(type="thinking_delta", thinking="hm"),
        ended("max_tokens"),
        STOP,
    )
    assert said.reasoning == {"0": "hm"}
    assert said.replay == {}


def test_pieces_that_say_nothing_are_not_delivered():
    decoder = CODEC.decoder(asked(), routed())
    silent = [
        begun(input_tokens=1), {"type": "ping"}, BLANK, text(""), {"type": "new_thing", "n": 1},
        opened(1, type="thinking", thinking=""), more(1, type="signature_delta", signature="s"),
        opened(2, type="redacted_thinking", data="d"), {"type": "content_block_stop", "index": 0},
    ]  # fmt: skip
    for document in silent:
        assert decoder.event(StreamEvent("", json.dumps(document).encode())) == []


# Whole answers


def test_whole_answer():
    said, ending = whole(
        content=[
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "a", "name": "f", "input": {}},
            {"type": "tool_use", "id": "b", "name": "g", "input": {"x": "ö"}},
        ],
        stop_reason="tool_use",
        stop_sequence=None,
        usage={"input_tokens": 2, "output_tokens": 4, "cache_read_input_tokens": 8},
    )
    assert said.text == {"0": "hi"}
    assert said.reasoning == {"0": "hm"}
    assert [c["arguments"] for c in said.calls["0"]] == ["{}", '{"x":"ö"}']
    assert ending.finishes == {0: Finish.TOOL_CALLS}
    assert ending.usage == ProviderUsage(10, 8, 4, 0)
    kept = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    assert json.loads(ending.replay[0]) == kept


def test_whole_answer_that_met_a_stop_string():
    block = {"type": "text", "text": "1, "}
    _, ending = whole(content=[block], stop_reason="stop_sequence", stop_sequence="2")
    assert ending.matched_stop == {0: "2"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"content": "text", "stop_reason": "end_turn"},
        {"content": ["text"], "stop_reason": "end_turn"},
        {"content": [], "stop_reason": None},
        {"content": [{"type": "audio", "data": "x"}], "stop_reason": "end_turn"},
        {"type": "error", "error": {"type": "api_error"}},
    ],
)
def test_whole_answers_that_are_none(fields):
    with pytest.raises(ProviderFailure):
        whole(**fields)


# Broken streams


@pytest.mark.parametrize(
    "events",
    [
        [TOOL, more(type="input_json_delta", partial_json='{"a'), ended("tool_use"), STOP],
        [BLANK, text("a"), ended("tool_use"), STOP],
        [opened(type="tool_use", id="t", name="", input={}), ended("tool_use"), STOP],
        [text("a"), ended(), STOP],
        [{"type": "content_block_stop", "index": 3}, ended(), STOP],
        [{"type": "content_block_delta", "delta": {"type": "text_delta"}}, ended(), STOP],
        [BLANK, BLANK, ended(), STOP],
        [BLANK, more(type="input_json_delta", partial_json="{}"), ended(), STOP],
        [BLANK, more(type="audio_delta", audio="UklG"), ended(), STOP],
        [opened(type="server_tool_use", id="s", name="web_search"), ended(), STOP],
        [{"type": "new_block_delta", "delta": {"text": "a"}}, BLANK, ended(), STOP],
        [BLANK, text("a"), ended(), ],
        [BLANK, text("a"), STOP],
        [BLANK, text("a"), ended(None), STOP],
        [],
    ],
)  # fmt: skip
def test_streams_that_break_their_promises_are_failures(events):
    with pytest.raises(ProviderFailure) as caught:
        heard(*events)
    assert caught.value.kind is FailureKind.BROKEN


@MANY
@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_provider_failure(data):
    with pytest.raises(ProviderFailure):
        hear(routed(), asked(), Framing.SSE, [b"data: " + data])
    with pytest.raises(ProviderFailure):
        CODEC.decoder(asked(), routed()).whole(data)
    with pytest.raises(ProviderFailure):
        CODEC.decode_count(routed(), data)
    assert CODEC.decode_error(400, {}, data).kind is FailureKind.REFUSED_REQUEST


NAMES = [
    "type", "index", "message", "content", "content_block", "delta", "usage", "error", "text",
    "thinking", "signature", "data", "id", "name", "input", "partial_json", "stop_reason",
    "stop_sequence", "input_tokens", "output_tokens", "output_tokens_details", "thinking_tokens",
    "details", "error_code",
]  # fmt: skip
WORDS = [
    "text", "thinking", "redacted_thinking", "tool_use", "text_delta", "thinking_delta",
    "signature_delta", "input_json_delta", "end_turn", "tool_use", "max_tokens", "error",
    "message_start", "content_block_start", "content_block_delta", "content_block_stop",
    "message_delta",
]  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
    max_leaves=30,
)
# Nearly proper events get further into the decoder than arbitrary documents.
EVENTS = st.builds(
    lambda kind, index, inner, rest: {"type": kind, "index": index, "content_block": inner,
                                      "delta": inner, "message": inner, **rest},
    st.sampled_from(WORDS),
    st.integers(0, 2),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5),
    st.dictionaries(st.just("usage"), JSON),
)  # fmt: skip


@MANY
@given(documents=st.lists(JSON | EVENTS, max_size=6))
def test_no_json_raises_anything_but_a_provider_failure(documents):
    lines = [b"data: " + json.dumps(d).encode() + b"\n\n" for d in [*documents, STOP]]
    with contextlib.suppress(ProviderFailure):
        hear(routed(), asked(), Framing.SSE, lines)
    for document in documents:
        body = json.dumps(document).encode()
        with contextlib.suppress(ProviderFailure):
            CODEC.decoder(asked(), routed()).whole(body)
        with contextlib.suppress(ProviderFailure):
            CODEC.decode_count(routed(), body)
        assert CODEC.decode_error(500, {}, body).kind is not FailureKind.REFUSED_REQUEST


def test_arguments_nested_deeper_than_can_be_written_are_a_failure():
    deep = '{"a":' * 400 + "1" + "}" * 400
    block = '{"type":"tool_use","id":"t","name":"f","input":' + deep + "}"
    body = '{"type":"message","stop_reason":"tool_use","content":[' + block + "]}"
    with pytest.raises(ProviderFailure) as caught:
        CODEC.decoder(asked(), routed()).whole(body.encode())
    assert caught.value.kind is FailureKind.BROKEN


# Refusals


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "invalid_request_error", "temperature: range: 0..1", FailureKind.REFUSED_REQUEST),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum",
         FailureKind.TOO_LONG),
        (400, "invalid_request_error",
         "Your credit balance is too low to access the Anthropic API.", FailureKind.NO_CREDIT),
        (400, "invalid_request_error", "You have reached your specified API usage limits.",
         FailureKind.NO_CREDIT),
        (401, "authentication_error", "invalid x-api-key", FailureKind.REFUSED_KEY),
        (402, "billing_error", "", FailureKind.NO_CREDIT),
        (403, "permission_error", "", FailureKind.REFUSED_KEY),
        (404, "not_found_error", "model: claude-0", FailureKind.MISCONFIGURED),
        (413, "request_too_large", "Request exceeds the maximum size", FailureKind.TOO_LONG),
        (429, "rate_limit_error", "", FailureKind.BUSY),
        (500, "api_error", "Internal server error", FailureKind.FAILED),
        (504, "timeout_error", "", FailureKind.FAILED),
        (529, "overloaded_error", "Overloaded", FailureKind.FAILED),
    ],
)  # fmt: skip
def test_refusals_by_status(status, code, message, kind):
    error = {"type": code, "message": message}
    body = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
    failure = CODEC.decode_error(status, {}, body)
    assert (failure.kind, failure.http_status, failure.code) == (kind, status, code)


def test_a_reached_spend_limit_is_no_rate_limit():
    details = {"error_code": "enforced_spend_limit_reached"}
    error = {"type": "rate_limit_error", "message": "limit", "details": details}
    failure = CODEC.decode_error(429, {}, json.dumps({"error": error}).encode())
    assert failure.kind is FailureKind.NO_CREDIT


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 7}', b'{"error":"plain"}'])
def test_refusals_with_any_body(body):
    assert CODEC.decode_error(400, {}, body).kind is FailureKind.REFUSED_REQUEST


def test_counts_are_read():
    assert CODEC.decode_count(routed(HAIKU), b'{"input_tokens":14}') == 14
    with pytest.raises(ProviderFailure):
        CODEC.decode_count(routed(HAIKU), b'{"tokens":14}')
