"""OpenAI's own SDK is the oracle: it hears in our recordings what our codec hears in them, as far
as a provider keeps to the format."""

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.support.recordings import RECORDINGS, Recording, load

READ = [load(path) for path in sorted((RECORDINGS / "openai_chat").glob("*.json"))]
WHOLE = [recording for recording in READ if recording.expect is not None]
# Where a provider's text or usage is not what the format says, the SDK cannot know what is meant.
OWN_TEXT = {"openai_chat/mistral_thinking"}
# The SDK goes by the index alone.
OWN_PLACES = {"openai_chat/tools_same_place", "openai_chat/tools_new_ids"}
OWN_USAGE = {"openai_chat/groq", "openai_chat/moonshot", "openai_chat/xai"}
OWN_FINISHES = {
    "eos": "stop",
    "eos_token": "stop",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "sensitive": "content_filter",
}


class Told:
    """What the SDK hears, joined. Only the first choice: no recording has more."""

    def __init__(self, data: bytes) -> None:
        self.text = ""
        self.calls: dict[int, dict[str, str]] = {}
        self.finishes: list[str] = []
        self.usage: openai.types.CompletionUsage | None = None
        for chunk in _chunks(data):
            self.usage = chunk.usage or self.usage
            # Typed as always there, and yet null from some.
            for choice in chunk.choices or ():
                self._take(choice)

    def _take(self, choice: Any) -> None:
        if choice.finish_reason:
            self.finishes.append(choice.finish_reason)
        if choice.delta is None:
            return
        if isinstance(choice.delta.content, str):
            self.text += choice.delta.content
        for fragment in choice.delta.tool_calls or ():
            call = self.calls.setdefault(fragment.index, {"id": "", "name": "", "arguments": ""})
            call["id"] = fragment.id or call["id"]
            call["name"] = fragment.function.name or call["name"]
            call["arguments"] += fragment.function.arguments or ""


def _chunks(data: bytes) -> list[Any]:
    def answer(_: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=data)

    client = openai.OpenAI(
        api_key="none",
        base_url="https://provider.invalid/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    messages: Any = [{"role": "user", "content": "hello"}]
    return list(client.chat.completions.create(model="m", messages=messages, stream=True))


def names_of(recordings: list[Recording]) -> set[str]:
    return {recording.name for recording in recordings}


def test_exceptions_are_recordings():
    assert names_of(WHOLE) >= OWN_TEXT | OWN_USAGE | OWN_PLACES
    assert len(WHOLE) > 2 * len(OWN_TEXT | OWN_USAGE | OWN_PLACES)


@pytest.mark.parametrize(
    "recording", [r for r in WHOLE if r.name not in OWN_TEXT], ids=lambda r: r.name
)
def test_sdk_hears_the_same_text(recording):
    heard = recording.hear([recording.data])
    assert heard.text.get("0", "") == Told(recording.data).text


@pytest.mark.parametrize(
    "recording", [r for r in WHOLE if r.name not in OWN_PLACES], ids=lambda r: r.name
)
def test_sdk_hears_the_same_calls_and_finish(recording):
    heard = recording.hear([recording.data])
    told = Told(recording.data)
    calls = heard.calls.get("0", [])
    assert [(c["id"], c["name"]) for c in calls] == [
        (c["id"], c["name"]) for _, c in sorted(told.calls.items())
    ]
    assert [json.loads(c["arguments"]) for c in calls] == [
        json.loads(c["arguments"] or "{}") for _, c in sorted(told.calls.items())
    ]
    # The first word on the end counts, except that a plain stop is no word on a cut.
    finish = next((f for f in told.finishes if f != "stop"), "stop")
    expected = OWN_FINISHES.get(finish, finish)
    assert heard.finish == {"0": "tool_calls" if calls and expected == "stop" else expected}


@pytest.mark.parametrize(
    "recording", [r for r in WHOLE if r.name not in OWN_USAGE], ids=lambda r: r.name
)
def test_sdk_hears_the_same_usage(recording):
    heard = recording.hear([recording.data])
    usage = Told(recording.data).usage
    assert usage is not None, "every recorded provider states it"
    assert heard.usage is not None
    assert heard.usage["prompt"] == usage.prompt_tokens
    assert heard.usage["completion"] == usage.completion_tokens
    details = usage.completion_tokens_details
    assert heard.usage["reasoning"] == ((details and details.reasoning_tokens) or 0)
    if usage.prompt_tokens_details is not None:
        assert heard.usage["cached"] == (usage.prompt_tokens_details.cached_tokens or 0)


@pytest.mark.parametrize("name", ["openrouter_error"])
def test_sdk_and_codec_agree_that_an_error_chunk_is_a_failure(name):
    with pytest.raises(openai.APIError):
        Told((RECORDINGS / "openai_chat" / f"{name}.sse").read_bytes())
