"""Google's own SDK, fed with the same bytes, hears what our codec hears."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import ProviderFailure
from tests.support.gemini import CODEC, answered, asked, called, encoded, routed, said
from tests.support.recordings import RECORDINGS, Recording, load

ALL = [load(path) for path in sorted((RECORDINGS / "gemini").glob("*.json"))]
WHOLE = [r for r in ALL if r.failure is None]
FAILED = [r for r in ALL if r.failure is not None]
# The reasons that the SDK knows, in our words.
FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}


def client(data: bytes, seen: list[httpx.Request] | None = None) -> genai.Client:
    """A client that is answered with these bytes, whatever it asks for."""

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        kind = "text/event-stream" if b"data:" in data else "application/json"
        return httpx.Response(200, headers={"Content-Type": kind}, content=data)

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    return genai.Client(
        vertexai=False,
        api_key="AKIDEXAMPLE",
        http_options=types.HttpOptions(
            base_url="https://provider.invalid", api_version="v1beta", httpx_client=transport
        ),
    )


def camel(value: Any) -> Any:
    """Names as the documentation spells them: the API takes the SDK's snake_case, too."""
    if isinstance(value, dict):
        return {
            re.sub(r"_([a-z])", lambda found: found[1].upper(), name): camel(inner)
            for name, inner in value.items()
        }
    return [camel(inner) for inner in value] if isinstance(value, list) else value


class Told:
    """What the SDK hears in a stream, in the form of a recording's `expect`."""

    def __init__(self, recording: Recording) -> None:
        self.text: dict[str, str] = defaultdict(str)
        self.reasoning: dict[str, str] = defaultdict(str)
        self.calls: dict[str, list[tuple[str | None, str | None, Any]]] = defaultdict(list)
        self.signatures: dict[str, list[bytes]] = defaultdict(list)
        self.reasons: dict[str, str] = {}
        self.blocked = False
        self.usage: types.GenerateContentResponseUsageMetadata | None = None
        chunks = client(recording.data).models.generate_content_stream(
            model=recording.route.model.name, contents="hello"
        )
        for chunk in chunks:
            self._take(chunk)

    def _take(self, chunk: types.GenerateContentResponse) -> None:
        self.usage = chunk.usage_metadata or self.usage
        if chunk.prompt_feedback and chunk.prompt_feedback.block_reason:
            self.blocked = True
        for candidate in chunk.candidates or ():
            number = str(candidate.index or 0)
            if candidate.finish_reason:
                self.reasons[number] = candidate.finish_reason.value
            for part in (candidate.content and candidate.content.parts) or ():
                if part.function_call:
                    call = part.function_call
                    self.calls[number].append((call.id, call.name, call.args or {}))
                elif part.thought:
                    self.reasoning[number] += part.text or ""
                else:
                    self.text[number] += part.text or ""
                if part.thought_signature:
                    self.signatures[number].append(part.thought_signature)


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_sdk_hears_the_same_text_calls_finish_and_usage(recording):
    ours = recording.hear([recording.data])
    theirs = Told(recording)
    assert ours.text == {n: text for n, text in theirs.text.items() if text}
    assert ours.reasoning == theirs.reasoning
    assert set(ours.calls) == set(theirs.calls)
    for number, calls in ours.calls.items():
        for mine, (identity, name, arguments) in zip(calls, theirs.calls[number], strict=True):
            assert mine["name"] == name
            assert json.loads(mine["arguments"]) == arguments
            # An id that the provider leaves out is ours to make up.
            assert identity is None or mine["id"] == identity
    for number, finish in ours.finish.items():
        if theirs.blocked:
            assert finish == "content_filter"
            continue
        reason = theirs.reasons[number]
        called_tools = reason == "STOP" and bool(theirs.calls.get(number))
        assert finish == ("tool_calls" if called_tools else FINISH[reason])
    assert theirs.blocked or set(ours.finish) == set(theirs.reasons)


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_sdk_counts_the_same(recording):
    ours = recording.hear([recording.data]).usage
    theirs = Told(recording).usage
    assert ours is not None
    assert theirs is not None
    assert ours["prompt"] == (theirs.prompt_token_count or 0) + (
        theirs.tool_use_prompt_token_count or 0
    )
    assert ours["cached"] == (theirs.cached_content_token_count or 0)
    assert ours["reasoning"] == (theirs.thoughts_token_count or 0)
    assert ours["completion"] == (theirs.candidates_token_count or 0) + ours["reasoning"]
    assert ours["prompt"] + ours["completion"] == theirs.total_token_count


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_sdk_sees_the_same_signatures(recording):
    ours = recording.hear([recording.data])
    theirs = Told(recording)
    kept = {
        number: [
            base64.b64decode(part["signature"], validate=True)
            for part in json.loads(state)["parts"]
            if "signature" in part
        ]
        for number, state in ours.replay.items()
    }
    assert kept == theirs.signatures


@pytest.mark.parametrize("recording", FAILED, ids=lambda r: r.name)
def test_what_is_a_failure_here_has_no_good_end_there(recording):
    with pytest.raises(ProviderFailure):
        recording.hear([recording.data])
    reasons, code = ending_there(recording)
    assert code in (None, 503)
    assert reasons <= {"MALFORMED_FUNCTION_CALL"}


def ending_there(recording: Recording) -> tuple[set[str], int | None]:
    """The finish reasons that the SDK hears, and the code of the error that it raises."""
    try:
        return set(Told(recording).reasons.values()), None
    except errors.APIError as error:
        return set(), error.code


def test_sdk_and_codec_send_the_same_request():
    """The SDK writes the conversation as we do: names, nesting and roles."""
    seen: list[httpx.Request] = []
    arguments = {"city": "Köln"}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    contents = [
        types.Content(role="user", parts=[types.Part(text="weather?")]),
        types.Content(
            role="model",
            parts=[
                types.Part(
                    function_call=types.FunctionCall(id="c1", name="weather", args=arguments),
                    thought_signature=b"signed",
                )
            ],
        ),
        types.Content(
            role="user",
            parts=[
                types.Part(
                    function_response=types.FunctionResponse(
                        id="c1", name="weather", response={"output": "rain"}
                    )
                )
            ],
        ),
    ]
    config = types.GenerateContentConfig(
        system_instruction=types.Content(parts=[types.Part(text="be brief")]),
        max_output_tokens=50,
        seed=3,
        stop_sequences=["x"],
        response_mime_type="application/json",
        response_json_schema=schema,
        thinking_config=types.ThinkingConfig(
            include_thoughts=True, thinking_level=types.ThinkingLevel.LOW
        ),
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name="weather", description="d", parameters_json_schema=schema
                    )
                ]
            )
        ],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"]
            )
        ),
    )
    list(
        client(WHOLE[0].data, seen).models.generate_content_stream(
            model="gemini-3.8-flash", contents=contents, config=config
        )
    )
    signature = base64.b64encode(b"signed").decode()
    layout = {"version": 1, "parts": [{"call": 0, "signature": signature}]}
    own = pb.ReasoningState(provider="gemini", data=json.dumps(layout).encode())
    call = called("weather", json.dumps(arguments))
    request = asked(
        messages=[
            said("be brief", pb.ROLE_SYSTEM),
            said("weather?"),
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call], reasoning_state=[own]),
            answered("rain"),
        ],
        sampling=pb.Sampling(max_tokens=50, seed=3, stop=["x"]),
        response_format=pb.ResponseFormat(json_schema=json.dumps(schema)),
        reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_LOW),
        tools=[pb.Tool(name="weather", description="d", parameters_json_schema=json.dumps(schema))],
        tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="weather"),
    )
    (theirs,) = seen
    ours = CODEC.encode_request(request, routed())
    assert theirs.url.raw_path.decode() == ours.path
    assert "x-goog-api-key" in theirs.headers
    assert camel(json.loads(theirs.content)) == encoded(request)


def test_sdk_asks_for_vectors_as_the_codec_does():
    seen: list[httpx.Request] = []
    body = json.dumps({"embeddings": [{"values": [1, 2]}, {"values": [3, 4]}]}).encode()
    answer = client(body, seen).models.embed_content(
        model="gemini-embedding-001",
        contents=["a", "b"],  # type: ignore[arg-type]
        config=types.EmbedContentConfig(output_dimensionality=2),
    )
    request = model_pb2.EmbedRequest(model="m", inputs=["a", "b"], dimensions=2)
    there = routed("gemini-embedding-001", capabilities=["embed"])
    ours = CODEC.encode_embed(request, there)
    assert seen[0].url.raw_path.decode() == ours.path
    theirs = json.loads(seen[0].content)
    for entry in theirs["requests"]:
        # The SDK states the role, which embeddings do without.
        entry["content"].pop("role", None)
    assert theirs == json.loads(ours.body)
    vectors = [embedding.values for embedding in answer.embeddings or ()]
    assert CODEC.decode_embed(request, there, body).vectors == vectors
