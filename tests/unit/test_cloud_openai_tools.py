"""The OpenAI chat codec puts fragments of tool calls together, however a provider numbers them, and
takes nothing for an answer that only looks like one."""

import base64
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import FailureKind, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialects import Framing
from tests.support.openai_chat import CODEC, asked
from tests.support.recordings import Heard, hear, route_to

ROUTE = route_to("openai-compatible", "x/y", capabilities=["generate", "tools"])


def chunk(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def fragment(arguments, index=None, identity=None, name=None):
    entry = {"function": {"arguments": arguments}}
    for key, value in (("index", index), ("id", identity)):
        if value is not None:
            entry[key] = value
    if name is not None:
        entry["function"]["name"] = name
    return entry


def heard(*documents) -> Heard:
    lines = [b"data: " + json.dumps(d).encode() + b"\n\n" for d in documents]
    return hear(ROUTE, asked(), Framing.SSE, [*lines, b"data: [DONE]\n\n"])


def calls_of(*fragments):
    chunks = [chunk(tool_calls=[entry]) for entry in fragments]
    return [tuple(call.values()) for call in heard(*chunks, chunk("tool_calls")).calls["0"]]


def failure_of(*documents) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught:
        heard(*documents)
    return caught.value


def test_the_same_id_again_goes_on_with_its_call():
    assert calls_of(
        fragment('{"a":', 0, "x", "f"), fragment("1}", 0, "x", "f"), fragment("{}", 1, "y", "f")
    ) == [("x", "f", '{"a":1}'), ("y", "f", "{}")]


def test_after_a_call_took_over_a_place_its_fragments_go_there():
    assert calls_of(
        fragment("{}", 0, "x", "f"), fragment("", 0, "y", "g"), fragment('{"b":', 0),
        fragment("2}", 0, "y"),
    ) == [("x", "f", "{}"), ("y", "g", '{"b":2}')]  # fmt: skip


def test_gaps_and_order_of_a_providers_numbers_are_its_own():
    assert calls_of(
        fragment("{", 7, "x", "f"), fragment("{", 2, "y", "g"), fragment("}", 7), fragment("}", 2)
    ) == [("x", "f", "{}"), ("y", "g", "{}")]


def test_calls_without_numbers_and_ids_begin_with_their_names():
    assert calls_of(
        fragment('{"a":', name="f"), fragment("1}"), fragment("{}", name="f")
    ) == [("call_0", "f", '{"a":1}'), ("call_1", "f", "{}")]  # fmt: skip


def test_a_whole_answer_may_have_calls_without_ids():
    message = {"tool_calls": [fragment("{}", name="f"), fragment({"b": 1}, name="g")]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    (delta,) = CODEC.decoder(asked(), ROUTE).whole(json.dumps(body).encode())
    assert [(t.index, t.id, t.name, t.arguments) for t in delta.tools] == [
        (0, "call_0", "f", "{}"),
        (1, "call_1", "g", '{"b":1}'),
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [fragment("{}", -1, "x", "f")],
        [fragment("{}", 128, "x", "f")],
        [fragment("{}", 0, "x")],
        [fragment("{}", 0, f"x{n}", "f") for n in range(129)],
        [fragment('{"a":', 0, "x", "f"), fragment("{}", 0, "y", "f")],
        {"index": 0},
        ["x"],
    ],
)
def test_calls_that_cannot_be_are_failures(entries):
    failure = failure_of(chunk(tool_calls=entries), chunk("tool_calls"))
    assert failure.kind is FailureKind.BROKEN


PLACES = st.none() | st.integers(-1, 3)
WORDS = st.none() | st.sampled_from(["", "a", "b"])


@settings(max_examples=300)
@given(
    entries=st.lists(
        st.builds(fragment, st.sampled_from(["", "{}", "{", "}"]), PLACES, WORDS, WORDS), max_size=8
    )
)
def test_indices_have_no_gaps_whatever_the_numbers(entries):
    chunks = [chunk(tool_calls=[entry]) for entry in entries]
    try:
        # Heard itself asserts that calls begin in the order of their index.
        got = heard(*chunks, chunk("stop"))
    except ProviderFailure:
        return
    for call in got.calls.get("0", []):
        assert call["id"]
        assert call["name"]
        json.loads(call["arguments"])


# What only looks like an answer


@pytest.mark.parametrize("finish", ["stop", "function_call"])
def test_a_function_call_of_the_old_form_is_never_passed_over(finish):
    legacy = {"name": "f", "arguments": "{}"}
    assert failure_of(chunk(function_call=legacy), chunk(finish)).kind is FailureKind.BROKEN
    assert heard(chunk(content="a", function_call=None), chunk("stop")).text == {"0": "a"}


@pytest.mark.parametrize("content", [{"text": "lost"}, 7, True])
def test_a_content_that_is_no_text_is_never_passed_over(content):
    assert failure_of(chunk(content=content), chunk("stop")).kind is FailureKind.BROKEN


@pytest.mark.parametrize(
    ("data", "kind", "status", "code"),
    [
        (b'{"code":"InternalError","message":"m"}', FailureKind.FAILED, None, "InternalError"),
        (b'{"error":{"code":429}}', FailureKind.BUSY, 429, ""),
        (b'{"status":500}', FailureKind.FAILED, None, ""),
        (b"oh no", FailureKind.BROKEN, None, ""),
    ],
)
def test_an_event_named_error_is_a_failure_whatever_its_data(data, kind, status, code):
    lines = [b"event: error\ndata: " + data + b"\n\n"]
    lines += [b"data: " + json.dumps(chunk("stop", content="a")).encode() + b"\n\n"]
    with pytest.raises(ProviderFailure) as caught:
        hear(ROUTE, asked(), Framing.SSE, [*lines, b"data: [DONE]\n\n"])
    failure = caught.value
    assert (failure.kind, failure.http_status, failure.code) == (kind, status, code)


# Vectors, counts and accounts

EMBED = model_pb2.EmbedRequest(model="m", inputs=["a"])


def embedded(document):
    return CODEC.decode_embed(EMBED, ROUTE, json.dumps(document).encode())


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_vectors_in_base64_are_the_same_vectors():
    plain = {"data": [{"index": 0, "embedding": [1.0, -0.5]}], "usage": {"prompt_tokens": 3}}
    coded = {"data": [{"index": 0, "embedding": packed(1, -0.5)}], "usage": {"prompt_tokens": 3}}
    assert embedded(coded) == embedded(plain)
    assert embedded(plain).vectors == [[1.0, -0.5]]


@pytest.mark.parametrize("text", ["", "AAA", "AAAA", "!!!!", "grüße", packed(float("nan"), 1)])
def test_texts_that_are_no_vectors_are_failures(text):
    with pytest.raises(ProviderFailure) as caught:
        embedded({"data": [{"index": 0, "embedding": text}]})
    assert caught.value.kind is FailureKind.BROKEN


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"error": {"code": 429, "message": "m"}}, FailureKind.BUSY),
        ({"vectors": None, "base_resp": {"status_code": 1008}}, FailureKind.NO_CREDIT),
    ],
)
def test_errors_in_place_of_vectors_and_counts_are_told(document, kind):
    route = route_to("moonshot", "kimi-k3")
    for ask in (embedded, lambda d: CODEC.decode_count(route, json.dumps(d).encode())):
        with pytest.raises(ProviderFailure) as caught:
            ask(document)
        assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"code": "1113", "message": "Insufficient balance or no resource package."}),
        (429, {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}),
        (400, {"code": "Arrearage", "type": "Arrearage", "message": "Access denied."}),
    ],
)
def test_accounts_without_credit_are_not_busy(status, error):
    failure = CODEC.decode_error(status, {}, json.dumps({"error": error}).encode())
    assert failure.kind is FailureKind.NO_CREDIT


@pytest.mark.parametrize(
    ("details", "used"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}}, (4, 0, 5)),
        ({"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 50}}, (4, 0, 6)),
        ({"reasoning_tokens": 2}, (0, 2, 0)),
        ({"reasoning_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 1}}, (0, 1, 0)),
    ],
)
def test_parts_of_usage_in_their_places(details, used):
    cached, reasoning, written = used
    decoder = CODEC.decoder(asked(), ROUTE)
    usage = {"prompt_tokens": 10, "completion_tokens": 3, **details}
    decoder.whole(json.dumps({"usage": usage}).encode())
    assert decoder.usage == ProviderUsage(10, cached, 3, reasoning, written)
