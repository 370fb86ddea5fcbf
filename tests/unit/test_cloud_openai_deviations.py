"""The OpenAI chat codec takes providers as they are: wishes they lack, thoughts, stops, errors."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, reason_name
from services.cloud_proxy.answer import FailureKind, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialects import Framing
from tests.support.openai_chat import CODEC, asked
from tests.support.recordings import Heard, hear, route_to

ABLE = ["generate", "tools", "reasoning", "resume_text"]
TOOL = pb.Tool(name="f", parameters_json_schema='{"type":"object"}')
AUTO = pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)
NONE = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
REQUIRED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
NAMED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="f")


def routed(provider="openai-compatible", model="x/y", **entry):
    return route_to(provider, model, **entry)


def encoded(request, route):
    return json.loads(CODEC.encode_request(request, route).body)


def chunk(finish=None, *, entry=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **(entry or {})}]}


def sse(*documents) -> list[bytes]:
    lines = [b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents]
    return [*lines, b"data: [DONE]\n\n"]


def heard(*documents, route=None, request=None) -> Heard:
    return hear(route or routed(), request or asked(), Framing.SSE, sse(*documents))


def failure_of(*documents, route=None) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught:
        heard(*documents, route=route)
    return caught.value


# Wishes about tools


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (AUTO, None),
        (NONE, "none"),
        (REQUIRED, "required"),
        (NAMED, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_wishes_that_a_provider_honours_are_sent(choice, sent):
    route = routed("vllm", "q", capabilities=ABLE)
    body = encoded(asked(tools=[TOOL], tool_choice=choice), route)
    assert body.get("tool_choice") == sent
    assert body["tools"]


@pytest.mark.parametrize("choice", [NONE, REQUIRED, NAMED])
def test_wishes_that_a_provider_passes_over_are_refused(choice):
    route = routed("zai", "glm-5.3")
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(asked(tools=[TOOL], tool_choice=choice), route)
    assert reason_name(caught.value.reason) == "UNSUPPORTED"
    assert caught.value.metadata["feature"] == "tool_choice"
    assert "tool_choice" not in encoded(asked(tools=[TOOL], tool_choice=AUTO), route)
    assert "tool_choice" not in encoded(asked(tools=[TOOL]), route)


def test_a_schema_that_is_nested_too_deeply_is_the_callers_to_mend():
    nested = pb.Tool(name="f", parameters_json_schema='{"a":' * 300 + "1" + "}" * 300)
    with pytest.raises(Fault) as caught:
        CODEC.encode_request(asked(tools=[nested]), routed(capabilities=ABLE[:2]))
    assert reason_name(caught.value.reason) == "INVALID_REQUEST"


# Going on with a turn


@pytest.mark.parametrize(
    ("provider", "more"),
    [
        ("vllm", {"continue_final_message": True, "add_generation_prompt": False}),
        ("sglang", {"continue_final_message": True}),
    ],
)
def test_a_continued_turn_is_told_apart_by_the_body_and_only_then(provider, more):
    route = routed(provider, "q", capabilities=ABLE)
    body = encoded(asked(continuation=pb.Continuation(text="Once")), route)
    assert {name: body.get(name) for name in more} == more
    assert body["messages"][-1] == {"role": "assistant", "content": "Once"}
    assert not set(more) & set(encoded(asked(), route))


def test_the_size_of_a_continued_prompt_is_that_of_the_continued_prompt():
    route = routed("vllm", "q", capabilities=ABLE)
    count = CODEC.encode_count(asked(continuation=pb.Continuation(text="Once")), route)
    assert count is not None
    assert json.loads(count.body)["continue_final_message"] is True
    plain = CODEC.encode_count(asked(), route)
    assert plain is not None
    assert set(json.loads(plain.body)) == {"model", "messages"}


# Content and thoughts


@pytest.mark.parametrize(
    "content",
    [["text"], [{"type": "image_url"}], [{"type": "reference", "reference_ids": [1]}], [{}], [[]]],
)
def test_parts_that_no_request_asks_for_are_failures(content):
    assert failure_of(chunk("stop", content=content)).kind is FailureKind.BROKEN


def test_thoughts_in_a_part_may_be_a_text_and_parts_may_be_mixed():
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]
    got = heard(chunk("stop", content=[*parts, *parts]))
    assert (got.reasoning, got.text) == ({"0": "aa"}, {"0": "bb"})


def details(*texts):
    return [{"type": "reasoning.text", "text": text} for text in texts]


def test_encrypted_details_say_nothing_and_several_are_joined():
    route = routed("openrouter", "x/y")
    sealed = [{"type": "reasoning.encrypted", "data": "c2VhbGVk"}]
    got = heard(
        chunk(reasoning_details=details("a", "b")),
        chunk(reasoning=None, reasoning_details=details("c")),
        chunk(reasoning_details=sealed),
        chunk("stop", content="x"),
        route=route,
    )
    assert got.reasoning == {"0": "abc"}


def test_details_are_not_read_where_a_profile_knows_of_no_thoughts():
    got = heard(chunk("stop", content="x", reasoning_details=details("a")), route=routed("mistral"))
    assert not got.reasoning


# Ends


@pytest.mark.parametrize("field", ["stop_reason", "matched_stop"])
def test_only_strings_that_were_asked_for_are_stop_strings(field):
    stopping = asked(sampling=pb.Sampling(stop=["END"]))
    for said, expected in (("END", {"0": "END"}), ("end_turn", {}), (151645, {}), (None, {})):
        got = heard(chunk("stop", entry={field: said}, content="a"), request=stopping)
        assert got.matched_stop == expected
    assert not heard(chunk("stop", entry={field: "END"}, content="a")).matched_stop


def test_no_stop_string_ends_an_answer_that_was_cut():
    stopping = asked(sampling=pb.Sampling(stop=["END"]))
    got = heard(chunk("length", entry={"stop_reason": "END"}, content="a"), request=stopping)
    assert got.finish == {"0": "length"}
    assert not got.matched_stop


def test_a_finish_that_is_empty_is_none():
    assert failure_of(chunk("", content="a")).kind is FailureKind.BROKEN


def test_without_a_marker_a_finish_is_enough_only_where_the_profile_says_so():
    pieces = sse(chunk("stop", content="a"))[:-1]
    there = routed("perplexity", "sonar")
    assert hear(there, asked(), Framing.SSE, pieces).finish == {"0": "stop"}
    with pytest.raises(ProviderFailure):
        hear(routed(), asked(), Framing.SSE, pieces)
    with pytest.raises(ProviderFailure):
        hear(there, asked(), Framing.SSE, sse(chunk(content="a"))[:-1])


def test_added_reasoning_stays_within_the_contract():
    largest = 2**31 - 1
    used = {
        "prompt_tokens": 1,
        "completion_tokens": largest,
        "completion_tokens_details": {"reasoning_tokens": largest},
    }
    decoder = CODEC.decoder(asked(), routed("xai", "grok-4.3"))
    decoder.whole(json.dumps({"usage": used}).encode())
    assert decoder.usage == ProviderUsage(1, 0, largest, largest)


# Errors


@pytest.mark.parametrize(
    ("document", "kind", "status", "code"),
    [
        ({"error": "overloaded"}, FailureKind.FAILED, None, ""),
        ({"error": {"code": "502"}}, FailureKind.FAILED, 502, ""),
        ({"error": {"code": 429}}, FailureKind.BUSY, 429, ""),
        ({"error": {"type": "rate_limit_error"}}, FailureKind.BUSY, None, "rate_limit_error"),
        ({"choices": [{"error": {"code": 503}}]}, FailureKind.FAILED, 503, ""),
        ({"object": "error", "code": 400, "message": "m"}, FailureKind.FAILED, 400, ""),
        ({"base_resp": {"status_code": 1000}}, FailureKind.FAILED, None, "1000"),
        ({"base_resp": {"status_code": 1002}}, FailureKind.BUSY, 429, "1002"),
        ({"base_resp": {"status_code": 1004}}, FailureKind.REFUSED_KEY, 401, "1004"),
        ({"base_resp": {"status_code": 1008}}, FailureKind.NO_CREDIT, 402, "1008"),
        ({"base_resp": {"status_code": 2013}}, FailureKind.REFUSED_REQUEST, 400, "2013"),
        ({"x_groq": {"error": "over capacity"}}, FailureKind.FAILED, None, ""),
    ],
)
def test_errors_inside_an_answer(document, kind, status, code):
    failure = failure_of(chunk(content="a"), document, chunk("stop"))
    assert (failure.kind, failure.http_status, failure.code) == (kind, status, code)
    with pytest.raises(ProviderFailure) as caught:
        CODEC.decoder(asked(), routed()).whole(json.dumps(document).encode())
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("body", "message", "code", "field"),
    [
        ({"error": "bad top_p"}, "bad top_p", "", ""),
        ({"code": "invalid-argument", "error": "bad top_p"}, "bad top_p", "invalid-argument", ""),
        ({"error": {"message": "bad", "type": "t", "code": "c", "param": "p"}}, "bad", "c t", "p"),
        ({"error": {"message": "bad", "type": None, "code": 400}}, "bad", "400", ""),
        ([{"error": {"message": "bad", "code": 400}}], "bad", "400", ""),
        ({"message": "bad", "code": "c"}, "bad", "c", ""),
        ({"object": "error", "message": "bad", "type": "BadRequestError"}, "bad",
         "BadRequestError", ""),
        ({"detail": "bad"}, "bad", "", ""),
        ({"detail": [{"loc": ["body", "top_p"], "msg": "bad", "type": "t"}]}, "bad", "",
         "body.top_p"),
        ({"object": "error", "message": {"detail": [{"loc": ["body", 0], "msg": "bad"}]},
          "type": "invalid_request_error"}, "bad", "invalid_request_error", "body.0"),
        ({"success": False, "errors": [{"code": 7009, "message": "bad"}]}, "bad", "7009", ""),
        ({"base_resp": {"status_code": 2013, "status_msg": "bad"}}, "bad", "2013", ""),
    ],
)  # fmt: skip
def test_refusals_in_every_spelling(body, message, code, field):
    failure = CODEC.decode_error(400, {}, json.dumps(body).encode())
    assert failure.kind is FailureKind.REFUSED_REQUEST
    assert (failure.message, failure.code, failure.field) == (message, code, field)


def test_minimax_says_by_number_what_its_status_does_not():
    body = b'{"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}'
    failure = CODEC.decode_error(500, {}, body)
    assert (failure.kind, failure.http_status) == (FailureKind.NO_CREDIT, 500)


NAMES = [
    "choices", "delta", "message", "content", "type", "text", "thinking", "reasoning_details",
    "error", "errors", "code", "detail", "msg", "loc", "base_resp", "status_code", "x_groq",
    "usage", "object", "stop_reason", "matched_stop", "prompt_tokens", "completion_tokens",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["stop", "error", "thinking", "text"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=40,
)  # fmt: skip
# Shaped like an answer as far down as possible, so that what lies deep is reached, too.
SHAPED = st.builds(
    lambda content, details_, reason, more: {
        "choices": [
            {"index": 0, "finish_reason": reason, **more,
             "delta": {"content": content, "reasoning_details": details_}},
        ],
        **more,
    },
    st.lists(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3), max_size=3) | JSON,
    JSON,
    st.sampled_from(["stop", "", None]) | JSON,
    st.dictionaries(st.sampled_from(NAMES[8:]), JSON, max_size=3),
)  # fmt: skip


@settings(max_examples=300)
@given(document=JSON | SHAPED)
def test_no_json_raises_anything_but_a_provider_failure(document):
    body = json.dumps(document).encode()
    for route in (routed(), routed("minimax", "MiniMax-M2.7")):
        with contextlib.suppress(ProviderFailure):
            hear(route, asked(), Framing.SSE, [b"data: " + body + b"\n\ndata: [DONE]\n\n"])
    assert CODEC.decode_error(400, {}, body).http_status == 400
