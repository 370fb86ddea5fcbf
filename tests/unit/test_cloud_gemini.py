"""The Gemini codec reads: what its recordings do not show, and what breaks its promises."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import FailureKind, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialects import Framing
from tests.support.gemini import CODEC, OLDER, asked, routed
from tests.support.recordings import Heard, hear

MANY = settings(max_examples=200)


def candidate(*parts, finish=None, index=0):
    entry = {"content": {"role": "model", "parts": list(parts)}, "index": index}
    return entry | ({"finishReason": finish} if finish else {})


def chunk(*candidates, **more):
    return {"candidates": list(candidates), **more}


def text(value, **more):
    return {"text": value, **more}


def call(name, arguments=None, **more):
    function = {"name": name} | ({} if arguments is None else {"args": arguments})
    return {"functionCall": function, **more}


def sse(*documents) -> list[bytes]:
    return [b"data: " + json.dumps(d).encode() + b"\r\n\r\n" for d in documents]


def heard(*documents, request=None, route=None) -> Heard:
    return hear(route or routed(), request or asked(), Framing.SSE, sse(*documents))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("LANGUAGE", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SPII", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("ESCALATION", "content_filter"),
    ],
)
def test_finish_reasons(reason, expected):
    assert heard(chunk(candidate(text("a"), finish=reason))).finish == {"0": expected}


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "SAFETY", "RECITATION"])
def test_a_cut_stays_a_cut_after_a_tool_call_and_before_a_further_stop(reason):
    got = heard(
        chunk(candidate(call("f", {"a": 1}))),
        chunk(candidate(finish=reason)),
        chunk(candidate(text(""), finish="STOP")),
    )
    assert got.finish == {"0": "length" if reason == "MAX_TOKENS" else "content_filter"}
    assert got.calls["0"][0]["arguments"] == '{"a":1}'


@pytest.mark.parametrize(
    "reason",
    ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "MALFORMED_RESPONSE",
     "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "FINISH_REASON_UNSPECIFIED", "NEW_ONE"],
)  # fmt: skip
def test_failing_and_unknown_finish_reasons_are_failures(reason):
    with pytest.raises(ProviderFailure) as caught:
        heard(chunk(candidate(text("a"))), chunk(candidate(finish=reason)))
    assert caught.value.kind is FailureKind.FAILED
    assert caught.value.code == reason


def test_usage_after_the_finish_reason_is_still_read():
    decoder = CODEC.decoder(asked(), routed())
    pieces = sse(
        chunk(candidate(text("hi"), finish="STOP")),
        {"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 1}},
    )
    got = hear(routed(), asked(), Framing.SSE, pieces)
    assert got.usage == {
        "prompt": 4, "cached": 0, "completion": 1, "reasoning": 0, "cache_written": 0,
    }  # fmt: skip
    decoder.whole(json.dumps(chunk(candidate(text("hi"), finish="STOP"))).encode())
    assert not decoder.done


def test_usage_is_known_when_an_answer_fails_or_is_cut_off():
    decoder = CODEC.decoder(asked(), routed())
    counted = {"promptTokenCount": 40, "candidatesTokenCount": 3, "thoughtsTokenCount": 8}
    failing = chunk(candidate(finish="OTHER"), usageMetadata=counted)
    with pytest.raises(ProviderFailure):
        decoder.whole(json.dumps(failing).encode())
    assert decoder.usage == ProviderUsage(40, 0, 11, 8)


def test_counts_that_a_chunk_leaves_out_stay_and_sums_stay_within_the_contract():
    decoder = CODEC.decoder(asked(), routed())
    largest = 2**31 - 1
    for counted in (
        {"promptTokenCount": 100, "cachedContentTokenCount": 64, "thoughtsTokenCount": 5},
        {"promptTokenCount": 90, "candidatesTokenCount": 7},
    ):
        decoder.whole(json.dumps({"usageMetadata": counted}).encode())
    assert decoder.usage == ProviderUsage(90, 64, 12, 5)
    counted = dict.fromkeys(("promptTokenCount", "toolUsePromptTokenCount"), largest)
    decoder.whole(json.dumps({"usageMetadata": counted}).encode())
    assert decoder.usage == ProviderUsage(largest, 64, 12, 5)


def test_text_after_a_stop_on_every_chunk_is_not_lost():
    got = heard(
        chunk(candidate(text("a"), finish="STOP")), chunk(candidate(text("b"), finish="STOP"))
    )
    assert got.text == {"0": "ab"}


def test_prompt_blocked_while_answering_ends_what_had_not_ended():
    got = heard(
        chunk(candidate(text("a"), finish="STOP"), candidate(text("b"), index=1)),
        {"promptFeedback": {"blockReason": "OTHER"}},
        request=asked(sampling=pb.Sampling(n=2)),
        route=routed(OLDER),
    )
    assert got.finish == {"0": "stop", "1": "content_filter"}


def test_feedback_that_blocks_nothing_is_no_ending():
    with pytest.raises(ProviderFailure) as caught:
        heard({"promptFeedback": {"safetyRatings": []}})
    assert caught.value.kind is FailureKind.BROKEN


def test_state_tells_which_part_each_signature_came_with():
    got = heard(
        chunk(candidate(text("hm", thought=True, thoughtSignature="T0"))),
        chunk(candidate(text("One "), text("🌊"), text("two", thoughtSignature="T1"))),
        chunk(candidate(call("f"), call("g", {}, thoughtSignature="T2"), finish="STOP")),
    )
    assert json.loads(got.replay["0"]) == {
        "version": 1,
        "parts": [
            {"thought": "hm", "signature": "T0"},
            {"text": 5},
            {"text": 3, "signature": "T1"},
            {"call": 0},
            {"call": 1, "signature": "T2"},
        ],
    }


def test_unsigned_answers_leave_no_state():
    assert not heard(chunk(candidate(text("a"), call("f"), finish="STOP"))).replay


@pytest.mark.parametrize(
    "documents",
    [
        [["no object"]],
        [7],
        [{"candidates": "none"}],
        [{"candidates": ["no object"]}],
        [chunk(candidate(text("a"), finish="STOP", index=1))],
        [chunk(candidate(text("a"), finish="STOP", index=-1))],
        [chunk(candidate(text("a"), finish="STOP", index="0"))],
        [chunk({"content": {"parts": "a"}, "finishReason": "STOP"})],
        [chunk(candidate("a", finish="STOP"))],
        [chunk(candidate(call("", {}), finish="STOP"))],
        [chunk(candidate(call("f", "{}"), finish="STOP"))],
        [chunk(candidate({"functionCall": {}}, finish="STOP"))],
        [chunk(candidate(*[call("f")] * 129, finish="STOP"))],
        [chunk(candidate({"functionCall": {"name": "f", "willContinue": True}}, finish="STOP"))],
        [chunk(candidate({"executableCode": {"code": "1"}}, finish="STOP"))],
        [chunk(candidate({"inlineData": {"data": ""}}, finish="STOP"))],
        [chunk(candidate(text("a")))],
        [{}],
    ],
)
def test_answers_that_break_their_promises_are_failures(documents):
    with pytest.raises(ProviderFailure) as caught:
        heard(*documents)
    assert caught.value.kind is FailureKind.BROKEN


def test_the_same_documents_in_a_whole_answer_and_in_a_list_say_the_same():
    documents = [
        chunk(candidate(text("a"))),
        chunk(candidate(call("f"), finish="STOP"), usageMetadata={"promptTokenCount": 2}),
    ]
    decoder = CODEC.decoder(asked(), routed())
    deltas = decoder.whole(json.dumps(documents).encode())
    assert "".join(delta.text for delta in deltas) == "a"
    assert decoder.ending().finishes == {0: Finish.TOOL_CALLS}
    assert decoder.usage == ProviderUsage(2, 0, 0, 0)
    single = CODEC.decoder(asked(), routed())
    assert single.whole(json.dumps(chunk(candidate(text("a"), finish="STOP"))).encode())
    assert single.ending().finishes == {0: Finish.STOP}


@pytest.mark.parametrize(
    ("error", "kind", "code", "after"),
    [
        ({"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20.5s"}]},
         FailureKind.BUSY, "RESOURCE_EXHAUSTED", 20.5),
        ({"status": "RESOURCE_EXHAUSTED"}, FailureKind.BUSY, "RESOURCE_EXHAUSTED", None),
        ({"code": 500, "status": "INTERNAL"}, FailureKind.FAILED, "INTERNAL", None),
        ("plain", FailureKind.FAILED, "", None),
        (7, FailureKind.FAILED, "", None),
    ],
)  # fmt: skip
def test_errors_inside_a_stream(error, kind, code, after):
    for document in ({"error": error}, [{"error": error}]):
        with pytest.raises(ProviderFailure) as caught:
            heard(chunk(candidate(text("a"))), document)
        assert (caught.value.kind, caught.value.code) == (kind, code)
        assert caught.value.retry_after == after


@MANY
@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_provider_failure(data):
    with pytest.raises(ProviderFailure):
        hear(routed(), asked(), Framing.SSE, [b"data: " + data])
    with contextlib.suppress(ProviderFailure):
        CODEC.decoder(asked(), routed()).whole(data)
    assert CODEC.decode_error(500, {}, data).kind is FailureKind.FAILED


NAMES = [
    "candidates", "content", "parts", "text", "thought", "thoughtSignature", "functionCall", "name",
    "args", "id", "finishReason", "index", "usageMetadata", "promptTokenCount", "error", "code",
    "candidatesTokenCount", "promptFeedback", "blockReason", "details", "@type", "retryDelay",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["STOP", "f", "x.RetryInfo", "3s"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=40,
)  # fmt: skip
# Shaped like an answer as far down as possible, so that what lies deep is reached, too.
SHAPED = st.builds(
    lambda parts, reason, index, usage: {
        "candidates": [{"content": {"parts": parts}, "finishReason": reason, "index": index}],
        "usageMetadata": usage,
    },
    st.lists(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), max_size=3),
    st.sampled_from(["STOP", "SAFETY"]) | JSON,
    st.sampled_from([0, None]) | JSON,
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
)


@MANY
@given(document=JSON | SHAPED)
def test_no_json_raises_anything_but_a_provider_failure(document):
    body = json.dumps(document).encode()
    with contextlib.suppress(ProviderFailure):
        hear(routed(), asked(), Framing.SSE, [b"data: " + body + b"\n\n"])
    assert CODEC.decode_error(500, {}, body).kind is FailureKind.FAILED
    with contextlib.suppress(ProviderFailure):
        CODEC.decode_count(routed(), body)
