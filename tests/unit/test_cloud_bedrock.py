"""What the Bedrock codec hears: as the official client hears it, and nothing that is not there."""

from __future__ import annotations

import json

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import FailureKind, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.dialect_table import DIALECTS
from services.cloud_proxy.dialects import Framing
from tests.support.recordings import RECORDINGS, hear, load, route_to
from tests.support.stream_faults import frame

CODEC = DIALECTS["bedrock_converse"]
MODEL = "amazon.nova-pro-v1:0"
REQUEST = pb.GenerateRequest(model="m")
WHOLE = [r for p in sorted(RECORDINGS.glob("bedrock_converse/*.json")) if (r := load(p)).expect]


class Body:
    """A response's body, as botocore reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, *_args, **_more):
        # In pieces that cut events.
        for at in range(0, len(self._data), 37):
            yield self._data[at : at + 37]

    def close(self) -> None:
        """Nothing is open."""


def official(data: bytes) -> list[dict]:
    """The events that the official client finds in a response."""
    session = botocore.session.Session()
    session.set_credentials("AKIDEXAMPLE", "secret")
    client = session.create_client(
        "bedrock-runtime", region_name="us-east-1", config=Config(retries={"max_attempts": 0})
    )
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    client.meta.events.register(
        "before-send.bedrock-runtime.ConverseStream",
        lambda request, **_: AWSResponse(request.url, 200, headers, Body(data)),
    )
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    return list(client.converse_stream(modelId=MODEL, messages=messages)["stream"])


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_official_client_hears_the_same(recording):
    text, reasoning, calls, reason, usage = "", "", {}, None, {}
    for event in official(recording.data):
        if "contentBlockStart" in event:
            start = event["contentBlockStart"]
            use = start["start"]["toolUse"]
            calls[start["contentBlockIndex"]] = [use["toolUseId"], use["name"], ""]
        elif "contentBlockDelta" in event:
            index, delta = (event["contentBlockDelta"][k] for k in ("contentBlockIndex", "delta"))
            text += delta.get("text", "")
            reasoning += delta.get("reasoningContent", {}).get("text", "")
            if "toolUse" in delta:
                calls[index][2] += delta["toolUse"]["input"]
        elif "messageStop" in event:
            reason = event["messageStop"]["stopReason"]
        elif "metadata" in event:
            usage = event["metadata"]["usage"]
    ours = recording.expect
    assert ours.get("text", {}).get("0", "") == text
    assert ours.get("reasoning", {}).get("0", "") == reasoning
    theirs = [{"id": i, "name": n, "arguments": a or "{}"} for i, n, a in calls.values()]
    assert ours.get("calls", {}).get("0", []) == theirs
    meaning = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length",
               "guardrail_intervened": "content_filter"}  # fmt: skip
    assert ours["finish"]["0"] == meaning[reason]
    cached = usage.get("cacheReadInputTokens", 0) + usage.get("cacheWriteInputTokens", 0)
    assert ours["usage"]["prompt"] == usage["inputTokens"] + cached
    assert ours["usage"]["completion"] == usage["outputTokens"]


def stream(*events: tuple[str, dict]) -> list[bytes]:
    return [frame("event", name, json.dumps(document).encode()) for name, document in events]


def heard(*events: tuple[str, dict]):
    route = route_to("bedrock", MODEL)
    return hear(route, REQUEST, Framing.AWS_EVENT_STREAM, stream(*events))


STOP = ("messageStop", {"stopReason": "end_turn"})


def part(index: int, **delta) -> tuple[str, dict]:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta}


def text(value: str) -> tuple[str, dict]:
    return part(0, text=value)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filtered", "content_filter"),
        ("guardrail_intervened", "content_filter"),
    ],
)
def test_stop_reasons(reason, finish):
    assert heard(text("a"), ("messageStop", {"stopReason": reason})).finish == {"0": finish}


@pytest.mark.parametrize(
    "events",
    [
        [text("a"), ("messageStop", {"stopReason": "never_heard_of"})],
        [text("a"), ("messageStop", {})],
        [text("a"), ("messageStop", {"stopReason": "tool_use"})],
        [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"video": {}}}), STOP],
        [part(1, toolUse={"input": "{"}), STOP],
        [("contentBlockDelta", {"delta": {"text": "a"}}), STOP],
        [("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "t"}}})],
        [("contentBlockStart", {"contentBlockIndex": 0, "start": {"image": {}}}), STOP],
        [text("a"), ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1}})],
    ],
)
def test_answers_that_break_their_promises_are_failures(events):
    with pytest.raises(ProviderFailure):
        heard(*events)


def test_reasoning_that_is_not_signed_is_shown_and_not_kept():
    found = heard(part(0, reasoningContent={"text": "hm"}), text("a"), STOP)
    assert (found.reasoning, found.replay) == ({"0": "hm"}, {})


def test_redacted_reasoning_in_parts_is_one_block():
    parts = [part(0, reasoningContent={"redactedContent": p}) for p in ("YQ==", "Yg==")]
    assert heard(*parts, text("a"), STOP).replay == {"0": '[{"redactedContent":"YWI="}]'}
    with pytest.raises(ProviderFailure):
        heard(part(0, reasoningContent={"redactedContent": "?"}), STOP)


def test_usage_may_be_missing_and_the_answer_is_whole_all_the_same():
    assert heard(text("a"), STOP).document() == {"text": {"0": "a"}, "finish": {"0": "stop"}}


def test_whole_answer_without_stream():
    content = [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"text": "Look:"},
        {"toolUse": {"toolUseId": "t", "name": "clock", "input": {"zone": "UTC"}}},
        {"toolUse": {"toolUseId": "u", "name": "clock", "input": {}}},
    ]
    body = {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use",
        "usage": {"inputTokens": 3, "outputTokens": 5, "cacheReadInputTokens": 2},
    }
    decoder = CODEC.decoder(REQUEST, route_to("bedrock", MODEL))
    deltas = decoder.whole(json.dumps(body).encode())
    assert "".join(d.text for d in deltas) == "Look:"
    arguments = {0: "", 1: ""}
    for tool in (t for d in deltas for t in d.tools):
        arguments[tool.index] += tool.arguments
    assert arguments == {0: '{"zone":"UTC"}', 1: "{}"}
    ending = decoder.ending()
    assert ending.finishes == {0: Finish.TOOL_CALLS}
    assert ending.usage == ProviderUsage(5, 2, 5, 0)
    assert json.loads(ending.replay[0]) == [{"reasoningText": {"text": "hm", "signature": "s"}}]


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (429, "ThrottlingException", "Too many requests", FailureKind.BUSY),
        (400, "ServiceQuotaExceededException", "quota", FailureKind.BUSY),
        (400, "ValidationException", "Malformed input request", FailureKind.REFUSED_REQUEST),
        (400, "ValidationException", "Input is too long for requested model", FailureKind.TOO_LONG),
        (400, "ValidationException", "The provided model identifier is invalid.",
         FailureKind.MISCONFIGURED),
        (403, "AccessDeniedException", "no", FailureKind.REFUSED_KEY),
        (404, "ResourceNotFoundException", "no", FailureKind.MISCONFIGURED),
        (424, "ModelErrorException", "no", FailureKind.FAILED),
        (429, "ModelNotReadyException", "not ready", FailureKind.FAILED),
        (503, "ServiceUnavailableException", "no", FailureKind.FAILED),
    ],
)  # fmt: skip
def test_refusals(status, kind, message, expected):
    body = json.dumps({"message": message}).encode()
    by_header = CODEC.decode_error(status, {"x-amzn-errortype": f"{kind}:http://x/"}, body)
    assert by_header.kind is expected
    told = json.dumps({"__type": f"com.amazon.coral#{kind}", "message": message}).encode()
    assert CODEC.decode_error(status, {}, told).kind is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("throttlingException", FailureKind.BUSY),
        ("modelStreamErrorException", FailureKind.FAILED),
        ("internalServerException", FailureKind.FAILED),
        ("validationException", FailureKind.REFUSED_REQUEST),
    ],
)
def test_exceptions_within_a_stream(name, expected):
    pieces = [*stream(text("a")), frame("exception", name, b'{"message":"m"}')]
    with pytest.raises(ProviderFailure) as caught:
        hear(route_to("bedrock", MODEL), REQUEST, Framing.AWS_EVENT_STREAM, pieces)
    assert caught.value.kind is expected
    assert caught.value.code == name
