"""Ollama's own SDK is the oracle: it hears in our recordings what our codec hears in them, and
the types of its requests hold what our codec sends."""

import json
from typing import Any

import httpx
import ollama
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import ProviderFailure
from tests.support.ollama import CODEC, asked, encoded, routed, said
from tests.support.recordings import RECORDINGS, Recording, load

READ = [load(path) for path in sorted((RECORDINGS / "ollama").glob("*.json"))]
WHOLE = [recording for recording in READ if recording.expect is not None]


def client(data: bytes, seen: list[httpx.Request] | None = None) -> ollama.Client:
    """A client that is answered with these bytes, whatever it asks for."""

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return httpx.Response(200, content=data)

    return ollama.Client("https://provider.invalid", transport=httpx.MockTransport(answer))


def told_by_sdk(recording: Recording) -> list[ollama.ChatResponse]:
    messages = [{"role": "user", "content": "hello"}]
    return list(client(recording.data).chat(model="m", messages=messages, stream=True))


@pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)
def test_sdk_hears_the_same(recording):
    heard = recording.hear([recording.data])
    told = told_by_sdk(recording)
    assert "".join(p.message.content or "" for p in told) == heard.text.get("0", "")
    assert "".join(p.message.thinking or "" for p in told) == heard.reasoning.get("0", "")
    calls = [call.function for p in told for call in p.message.tool_calls or ()]
    assert [(c["name"], json.loads(c["arguments"])) for c in heard.calls.get("0", [])] == [
        (c.name, dict(c.arguments)) for c in calls
    ]
    last = told[-1]
    assert last.done
    finish = "tool_calls" if calls and last.done_reason == "stop" else last.done_reason
    assert heard.finish == {"0": finish}
    if last.prompt_eval_count is None:
        assert heard.usage is None
    else:
        assert heard.usage is not None
        assert heard.usage["prompt"] == last.prompt_eval_count
        assert heard.usage["completion"] == last.eval_count


def test_sdk_and_codec_agree_that_an_error_line_is_a_failure():
    (recording,) = (r for r in READ if r.name == "ollama/error")
    with pytest.raises(ollama.ResponseError):
        told_by_sdk(recording)
    with pytest.raises(ProviderFailure):
        recording.hear([recording.data])


REQUEST = asked(
    messages=[
        said("be kind", pb.ROLE_SYSTEM),
        pb.Message(role=pb.ROLE_USER, content=[
            pb.ContentPart(text="what is it"),
            pb.ContentPart(image=pb.Image(data=b"\x89PNG", media_type="image/png"))]),
        pb.Message(
            role=pb.ROLE_ASSISTANT,
            reasoning_state=[pb.ReasoningState(provider="ollama", data=b"hm")],
            tool_calls=[pb.ToolCall(id="c", name="look", arguments='{"at":"sky"}')],
        ),
        pb.Message(role=pb.ROLE_TOOL, tool_call_id="c", content=[pb.ContentPart(text="blue")]),
    ],
    tools=[pb.Tool(name="look", description="d", parameters_json_schema=json.dumps(
        {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}))],
    reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_HIGH),
    response_format=pb.ResponseFormat(json_schema='{"type":"object"}'),
    sampling=pb.Sampling(max_tokens=9, temperature=0, top_p=0.5, stop=["x"], seed=3),
)  # fmt: skip
# Fields of the server that this version of the SDK does not know: it leaves them out.
SERVER_ONLY = {"truncate", "shift"}
SERVER_ONLY_IN_MESSAGES = {"tool_call_id"}


def test_sdk_sends_for_the_same_wishes_what_our_codec_sends():
    ours = encoded(REQUEST)
    wishes: dict[str, Any] = {n: v for n, v in ours.items() if n not in SERVER_ONLY}
    seen: list[httpx.Request] = []
    (recording,) = (r for r in READ if r.name == "ollama/text")
    list(client(recording.data, seen).chat(**wishes))
    # The SDK leaves out what is empty, a turn's content too.
    wishes["messages"] = [
        {n: v for n, v in m.items() if v and n not in SERVER_ONLY_IN_MESSAGES}
        for m in wishes["messages"]
    ]
    for call in (c for m in wishes["messages"] for c in m.get("tool_calls", ())):
        assert call.pop("id")
    assert json.loads(seen[0].content) == wishes
    assert seen[0].url.path == CODEC.encode_request(REQUEST, routed()).path


def test_sdk_asks_for_vectors_as_our_codec_does():
    there = routed(model="nomic-embed-text", capabilities=["embed"])
    request = model_pb2.EmbedRequest(model="m", inputs=["a", "b"], dimensions=2)
    sent = CODEC.encode_embed(request, there)
    body = b'{"model":"nomic-embed-text","embeddings":[[1,0],[0.5,2]],"prompt_eval_count":3}'
    seen: list[httpx.Request] = []
    told = client(body, seen).embed(**json.loads(sent.body))
    assert json.loads(seen[0].content) == json.loads(sent.body)
    assert seen[0].url.path == sent.path
    assert told.embeddings == CODEC.decode_embed(request, there, body).vectors
