"""What Gemini's refusals mean, and its vectors and token counts."""

import json

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import Fault
from services.cloud_proxy.answer import FailureKind, ProviderFailure, ProviderUsage
from tests.support.gemini import CODEC, FLASH, asked, encoded, routed, said

# Refusals


def refused(status, message="", state_="", *details, wrapped=False):
    error = {"code": status, "message": message, "status": state_, "details": list(details)}
    body = {"error": error}
    return CODEC.decode_error(status, {}, json.dumps([body] if wrapped else body).encode())


INFO = "type.googleapis.com/google.rpc."
BAD_KEY = {"@type": INFO + "ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
LATER = {"@type": INFO + "RetryInfo", "retryDelay": "26s"}
WHERE = {"@type": INFO + "BadRequest", "fieldViolations": [{"field": "contents[0].parts"}]}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("status", "message", "state_", "details", "kind"),
    [
        (400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", [BAD_KEY],
         FailureKind.REFUSED_KEY),
        (400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", [],
         FailureKind.REFUSED_KEY),
        (400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT", [BAD_KEY],
         FailureKind.REFUSED_KEY),
        (400, "The input token count (1200293) exceeds the maximum number of tokens allowed"
         " (1048576).", "INVALID_ARGUMENT", [], FailureKind.TOO_LONG),
        (400, "Penalty is not enabled for this model", "INVALID_ARGUMENT", [],
         FailureKind.REFUSED_REQUEST),
        (400, "User location is not supported for the API use.", "FAILED_PRECONDITION", [],
         FailureKind.MISCONFIGURED),
        (401, "", "UNAUTHENTICATED", [], FailureKind.REFUSED_KEY),
        (403, "", "PERMISSION_DENIED", [], FailureKind.REFUSED_KEY),
        (404, "", "NOT_FOUND", [], FailureKind.MISCONFIGURED),
        (429, "You exceeded your current quota, please check your plan and billing details.",
         "RESOURCE_EXHAUSTED", [LATER], FailureKind.BUSY),
        (500, "", "INTERNAL", [], FailureKind.FAILED),
        (503, "The model is overloaded. Please try again later.", "UNAVAILABLE", [],
         FailureKind.FAILED),
        (504, "", "DEADLINE_EXCEEDED", [], FailureKind.FAILED),
    ],
)  # fmt: skip
def test_refusals(status, message, state_, details, kind, wrapped):
    failure = refused(status, message, state_, *details, wrapped=wrapped)
    assert failure.kind is kind
    assert failure.http_status == status


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("26s", 26.0), ("20.04466179s", 20.04466179), ("9999999s", 86_400.0), ("soon", None),
     ("-1s", None), (26, None), ("1e9s", None)],
)  # fmt: skip
def test_delay_that_the_body_asks_for(delay, seconds):
    failure = refused(429, "", "RESOURCE_EXHAUSTED", {**LATER, "retryDelay": delay})
    assert failure.retry_after == seconds


def test_refused_requests_say_where_and_nothing_of_our_account():
    assert refused(400, "bad", "INVALID_ARGUMENT", WHERE).field == "contents[0].parts"
    for status in (401, 403, 404, 429, 500):
        assert "sk-1" not in refused(status, "key sk-1").message
    assert "sk-1" not in refused(400, "API key not valid: sk-1", "INVALID_ARGUMENT").message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"[7]", b'{"error": 7}', b'{"error":"x"}'])
def test_refusals_with_any_body(body):
    assert CODEC.decode_error(400, {}, body).kind is FailureKind.REFUSED_REQUEST


# Vectors and counts

EMBED = model_pb2.EmbedRequest(model="m", inputs=["a", "b"], dimensions=768)


def test_embeddings_are_asked_for_one_content_each():
    sent = CODEC.encode_embed(EMBED, routed("gemini-embedding-2"))
    assert sent.path == "/v1beta/models/gemini-embedding-2:batchEmbedContents"
    assert json.loads(sent.body) == {
        "requests": [
            {
                "model": "models/gemini-embedding-2",
                "content": {"parts": [{"text": text}]},
                "outputDimensionality": 768,
            }
            for text in "ab"
        ]
    }
    plain = model_pb2.EmbedRequest(model="m", inputs=["a"])
    (entry,) = json.loads(CODEC.encode_embed(plain, routed("gemini-embedding-2")).body)["requests"]
    assert "outputDimensionality" not in entry


@pytest.mark.parametrize(
    ("model", "inputs", "feature"),
    [(FLASH, ["a"], "embed"), ("gemini-embedding-2", ["a"] * 101, "inputs")],
)
def test_what_cannot_be_embedded_is_refused(model, inputs, feature):
    with pytest.raises(Fault) as caught:
        CODEC.encode_embed(model_pb2.EmbedRequest(model="m", inputs=inputs), routed(model))
    assert caught.value.metadata["feature"] == feature


def test_vectors_come_in_the_order_of_the_inputs():
    document = {"embeddings": [{"values": [1, 0.5]}, {"values": [0, -1]}]}
    found = CODEC.decode_embed(EMBED, routed(), json.dumps(document).encode())
    assert found.vectors == [[1.0, 0.5], [0.0, -1.0]]
    assert found.usage is None
    document["usageMetadata"] = {"promptTokenCount": 4}
    found = CODEC.decode_embed(EMBED, routed(), json.dumps(document).encode())
    assert found.usage == ProviderUsage(4, 0, 0, 0)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"embeddings":[{"values":[1]}]}', b'{"embeddings":[{"values":["a"]},{}]}'],
)
def test_vectors_that_are_missing_or_none_are_failures(body):
    with pytest.raises(ProviderFailure) as caught:
        CODEC.decode_embed(EMBED, routed(), body)
    assert caught.value.kind is FailureKind.BROKEN


def test_counting_sends_what_generating_would():
    request = asked(
        messages=[said("be brief", pb.ROLE_SYSTEM), said("hi")], tools=[pb.Tool(name="f")]
    )
    sent = CODEC.encode_count(request, routed())
    assert sent is not None
    assert sent.path == "/v1beta/models/gemini-3.8-flash:countTokens"
    whole = json.loads(sent.body)["generateContentRequest"]
    assert whole.pop("model") == "models/gemini-3.8-flash"
    assert whole == encoded(request)
    assert {"systemInstruction", "tools", "contents"} <= set(whole)
    assert CODEC.decode_count(routed(), b'{"totalTokens": 31}') == 31
    with pytest.raises(ProviderFailure):
        CODEC.decode_count(routed(), b'{"totalTokens": "31"}')
