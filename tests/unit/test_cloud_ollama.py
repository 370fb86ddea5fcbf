"""The Ollama codec reads: what its recordings do not show, and what breaks its promises."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import FailureKind, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialects import Framing
from tests.support.ollama import CODEC, asked, routed
from tests.support.recordings import Heard, hear

MANY = settings(max_examples=200)
DONE = {"done": True, "done_reason": "stop"}


def said(content="", **message):
    return {"message": {"role": "assistant", "content": content, **message}, "done": False}


def call(name="f", arguments=None, **more):
    function = {"name": name} | ({} if arguments is None else {"arguments": arguments})
    return said(tool_calls=[{"function": function, **more}])


def lines(*documents) -> list[bytes]:
    return [json.dumps(document).encode() + b"\n" for document in documents]


def heard(*documents) -> Heard:
    return hear(routed(), asked(), Framing.NDJSON, lines(*documents))


def failure_of(*documents) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught:
        heard(*documents)
    return caught.value


def test_what_the_last_line_says_is_heard():
    got = heard({**said("all of it", thinking="hm"), **DONE})
    assert (got.text, got.reasoning) == ({"0": "all of it"}, {"0": "hm"})
    assert got.finish == {"0": "stop"}


def test_what_follows_the_last_line_says_nothing():
    assert heard(said("a"), DONE, {"error": "late"}).text == {"0": "a"}


@pytest.mark.parametrize("reason", ["load", "unload", "new_one"])
def test_reasons_that_end_no_answer_are_failures(reason):
    failure = failure_of(said("a"), {"done": True, "done_reason": reason})
    assert (failure.kind, failure.code) == (FailureKind.FAILED, reason)


def test_length_after_a_call_stays_length():
    got = heard(call(arguments={"a": 1}), {"done": True, "done_reason": "length"})
    assert got.finish == {"0": "length"}


def test_calls_with_the_same_place_on_several_lines_are_several_calls():
    first = said(tool_calls=[{"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}])
    second = said(tool_calls=[{"function": {"index": 0, "name": "g", "arguments": None}}])
    assert heard(first, second, DONE).calls["0"] == [
        {"id": "call_0", "name": "f", "arguments": '{"a":1}'},
        {"id": "call_1", "name": "g", "arguments": "{}"},
    ]


def test_thinking_without_calls_leaves_no_state():
    assert not heard(said(thinking="hm"), said("a"), DONE).replay


def test_counts_are_replaced_and_a_count_of_nothing_is_left_out_by_the_server():
    decoder = CODEC.decoder(asked(), routed())
    for counts in ({"prompt_eval_count": 4, "eval_count": 1}, {"prompt_eval_count": 5}):
        decoder.whole(json.dumps({**said("a"), **counts}).encode())
    assert decoder.usage == ProviderUsage(5, 0, 0, 0)


@pytest.mark.parametrize(("stated", "cached"), [(16, 16), (0, 0), (None, 0), (-1, 0), (99, 21)])
def test_cached_tokens_are_part_of_the_prompts(stated, cached):
    counts = {"prompt_eval_count": 21, "prompt_eval_cached_count": stated, "eval_count": 3}
    decoder = CODEC.decoder(asked(), routed())
    decoder.whole(json.dumps({**said("a"), **DONE, **counts}).encode())
    assert decoder.usage == ProviderUsage(21, cached, 3, 0)


def test_a_whole_answer_says_the_same():
    decoder = CODEC.decoder(asked(), routed())
    document = {**call(arguments={}, id="c"), **DONE, "prompt_eval_count": 2, "eval_count": 3}
    (delta,) = decoder.whole(json.dumps(document).encode())
    assert (delta.tools[0].id, delta.tools[0].arguments) == ("c", "{}")
    assert decoder.done
    assert decoder.ending().finishes == {0: Finish.TOOL_CALLS}
    assert decoder.ending().usage == ProviderUsage(2, 0, 3, 0)


@pytest.mark.parametrize(
    "documents",
    [
        [["no object"]],
        [7],
        [{"message": "text", **DONE}],
        [{"message": {"tool_calls": "none"}}, DONE],
        [{"message": {"tool_calls": ["none"]}}, DONE],
        [call(""), DONE],
        [call(arguments='{"a":1}'), DONE],
        [call(arguments=[1]), DONE],
        [said(tool_calls=[{"function": {"name": "f"}}] * 129), DONE],
        [said("a"), {"done": "true", "done_reason": "stop"}],
        [said("a"), {"done": True, "done_reason": ""}],
        [said("a"), {"done": True}],
        [],
    ],
)
def test_answers_that_break_their_promises_are_failures(documents):
    assert failure_of(*documents).kind is FailureKind.BROKEN


@pytest.mark.parametrize("error", ["out of memory at /home/x", {"message": "m"}, 7, ["x"]])
def test_errors_inside_a_stream_are_failures_whose_words_stay_here(error):
    failure = failure_of(said("a"), {"error": error})
    assert failure.kind is FailureKind.FAILED
    assert "home" not in failure.message


# Refusals


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (404, "model 'x' not found", FailureKind.MISCONFIGURED),
        (400, "invalid options: temperature", FailureKind.REFUSED_REQUEST),
        (400, "the input length exceeds the context length", FailureKind.TOO_LONG),
        (401, "unauthorized", FailureKind.REFUSED_KEY),
        (429, "too many concurrent requests", FailureKind.BUSY),
        (500, "model requires more system memory", FailureKind.FAILED),
        (503, "server busy, please try again", FailureKind.FAILED),
    ],
)
def test_refusals(status, message, kind):
    failure = CODEC.decode_error(status, {}, json.dumps({"error": message}).encode())
    assert (failure.kind, failure.http_status) == (kind, status)
    if kind is FailureKind.REFUSED_REQUEST:
        assert failure.message == message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 7}', b'{"error": {}}'])
def test_refusals_with_any_body(body):
    assert CODEC.decode_error(400, {}, body).kind is FailureKind.REFUSED_REQUEST


# Vectors

EMBED = model_pb2.EmbedRequest(model="m", inputs=["a", "b"], dimensions=2)
VECTORS = routed(model="nomic-embed-text", capabilities=["embed"])


def test_vectors_in_the_order_of_their_inputs():
    body = b'{"embeddings":[[1,0.5],[2,3]],"prompt_eval_count":6}'
    got = CODEC.decode_embed(EMBED, VECTORS, body)
    assert got.vectors == [[1.0, 0.5], [2.0, 3.0]]
    assert got.usage == ProviderUsage(6, 0, 0, 0)
    silent = CODEC.decode_embed(EMBED, VECTORS, b'{"embeddings":[[1],[2]]}')
    assert silent.usage is None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"embeddings":[[1]]}', b'{"embeddings":[[1],["a"]]}', b"[]"]
)
def test_other_vectors_than_asked_for_are_failures(body):
    with pytest.raises(ProviderFailure) as caught:
        CODEC.decode_embed(EMBED, VECTORS, body)
    assert caught.value.kind is FailureKind.BROKEN


def test_nothing_counts_tokens():
    assert CODEC.encode_count(asked(), routed()) is None
    with pytest.raises(ProviderFailure):
        CODEC.decode_count(routed(), b'{"count": 1}')


# Whatever the bytes


@MANY
@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_provider_failure(data):
    with pytest.raises(ProviderFailure):
        hear(routed(), asked(), Framing.NDJSON, [data])
    with contextlib.suppress(ProviderFailure):
        CODEC.decoder(asked(), routed()).whole(data)
    assert CODEC.decode_error(500, {}, data).kind is FailureKind.FAILED


NAMES = [
    "message", "content", "thinking", "tool_calls", "function", "name", "arguments", "index", "id",
    "done", "done_reason", "prompt_eval_count", "eval_count", "error", "embeddings",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["stop", "length", "f"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=40,
)  # fmt: skip
# Shaped like an answer as far down as possible, so that what lies deep is reached, too.
SHAPED = st.builds(
    lambda content, thinking, calls, reason, count: {
        "message": {"content": content, "thinking": thinking, "tool_calls": calls},
        "done": True,
        "done_reason": reason,
        "prompt_eval_count": count,
        "eval_count": count,
    },
    st.text(max_size=5) | JSON,
    st.text(max_size=5) | JSON,
    st.lists(st.builds(lambda f: {"function": f}, JSON), max_size=3) | JSON,
    st.sampled_from(["stop", "length"]) | JSON,
    st.integers() | JSON,
)


@MANY
@given(document=JSON | SHAPED)
def test_no_json_raises_anything_but_a_provider_failure(document):
    body = json.dumps(document).encode()
    with contextlib.suppress(ProviderFailure):
        hear(routed(), asked(), Framing.NDJSON, [body + b"\n"])
    with contextlib.suppress(ProviderFailure):
        CODEC.decode_embed(EMBED, VECTORS, body)
    assert CODEC.decode_error(500, {}, body).kind is FailureKind.FAILED


def test_arguments_nested_too_deeply_are_a_failure():
    nested = b'{"a":' * 300 + b"1" + b"}" * 300
    body = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":' + nested + b"}}]}}"
    with pytest.raises(ProviderFailure) as caught:
        CODEC.decoder(asked(), routed()).whole(body)
    assert caught.value.kind is FailureKind.BROKEN
