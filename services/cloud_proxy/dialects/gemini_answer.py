"""Decodes answers of Gemini's generateContent, streamed and whole.

There is no terminal marker: an answer is complete when every wanted candidate has said why it
ended, and the stream is read to its end, since usage may follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from services.cloud_proxy.answer import (
    Delta,
    Ending,
    Finish,
    ProviderFailure,
    ProviderUsage,
    ToolFragment,
)
from services.cloud_proxy.dialects import failures
from services.cloud_proxy.dialects.fields import broken, count_of, object_of, text_of
from services.cloud_proxy.dialects.finishes import finish_of, settled
from services.cloud_proxy.dialects.gemini_errors import read_error
from services.cloud_proxy.dialects.gemini_turn import TurnLayout
from services.cloud_proxy.dialects.tool_calls import ToolCalls
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.streams import StreamEvent

# What is not here is a failure: MALFORMED_FUNCTION_CALL, UNEXPECTED_TOOL_CALL, OTHER and the like.
_FINISHES: Mapping[str, str] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    # The limit of one request, which another one could go beyond.
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "ESCALATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
# Output of features that no request of ours turns on; leaving it out would change the answer.
_UNASKED = ("inlineData", "fileData", "executableCode", "codeExecutionResult", "toolCall")
_COUNTS = (
    "promptTokenCount",
    "toolUsePromptTokenCount",
    "cachedContentTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
)


class _Candidate:
    """What is known of one candidate so far."""

    __slots__ = ("calls", "finish", "layout")

    def __init__(self) -> None:
        self.calls = ToolCalls()
        self.finish: Finish | None = None
        self.layout = TurnLayout()


class GeminiAnswer:
    """Reads one answer with `choices` candidates."""

    def __init__(self, profile: Profile, choices: int) -> None:
        self._profile = profile
        self._wanted = choices
        self._candidates: dict[int, _Candidate] = {}
        self._counts: dict[str, int] = {}
        self._blocked = False

    @property
    def done(self) -> bool:
        """Never: no event says that nothing follows it."""
        return False

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far: a running total on every event."""
        if "promptTokenCount" not in self._counts:
            return None
        prompt, tools, cached, candidates, thoughts = (self._counts.get(n, 0) for n in _COUNTS)
        whole_prompt = count_of(prompt + tools) or 0
        completion = count_of(candidates + thoughts) or 0
        return ProviderUsage(whole_prompt, min(cached, whole_prompt), completion, thoughts)

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one event says. Raises ProviderFailure."""
        data = event.data.strip()
        return self.whole(data) if data else []

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says, or a list of them. Raises ProviderFailure."""
        return [delta for document in _documents(body) for delta in self._response(document)]

    def ending(self) -> Ending:
        """The end of a complete answer. Raises ProviderFailure."""
        finishes, replay = {}, {}
        for number in range(self._wanted):
            candidate = self._candidates.get(number, _NOTHING)
            if candidate.finish is not None:
                finishes[number] = settled(candidate.finish, candidate.calls)
            elif self._blocked:
                finishes[number] = Finish.CONTENT_FILTER
            else:
                raise broken("the provider's answer ended without a finish reason")
            state = candidate.layout.state() if self._profile.reasoning.replay else b""
            if state:
                replay[number] = state
        return Ending(finishes, self.usage, replay)

    def _response(self, document: dict[str, Any]) -> list[Delta]:
        error = document.get("error")
        if error:
            raise in_band(error)
        # Before the candidates: one of them may be a failure, and what it cost is known.
        self._take_usage(object_of(document.get("usageMetadata")))
        # A blocked prompt has no candidates.
        self._blocked = self._blocked or bool(
            object_of(document.get("promptFeedback")).get("blockReason")
        )
        candidates = document.get("candidates")
        if candidates is None:
            return []
        if not isinstance(candidates, list):
            raise broken("the provider sent candidates that are no list")
        return [delta for entry in candidates if (delta := self._candidate(entry)) is not None]

    def _take_usage(self, stated: dict[str, Any]) -> None:
        # Replaced, never added; what a chunk leaves out stays as it was.
        for name in _COUNTS:
            count = count_of(stated.get(name))
            if count is not None:
                self._counts[name] = count

    def _candidate(self, entry: Any) -> Delta | None:
        if not isinstance(entry, dict):
            raise broken("the provider sent a candidate that is no object")
        number = entry.get("index") or 0
        if not isinstance(number, int) or not 0 <= number < self._wanted:
            raise broken("the provider sent a candidate that was not asked for")
        number = int(number)
        candidate = self._candidates.get(number)
        if candidate is None:
            candidate = self._candidates[number] = _Candidate()
        parts = object_of(entry.get("content")).get("parts") or []
        if not isinstance(parts, list):
            raise broken("the provider sent parts that are no list")
        text, reasoning = "", ""
        tools: list[ToolFragment] = []
        for part in parts:
            if not isinstance(part, dict):
                raise broken("the provider sent a part that is no object")
            if part.get("functionCall") is not None:
                tools.append(_call(candidate, part))
            elif part.get("thought"):
                thought = text_of(part.get("text"))
                candidate.layout.thought(thought, text_of(part.get("thoughtSignature")))
                reasoning += thought
            else:
                text += _text(candidate, part)
        self._finish(candidate, entry.get("finishReason"))
        if text or reasoning or tools:
            return Delta(number, text, reasoning, tuple(tools))
        return None

    def _finish(self, candidate: _Candidate, reason: Any) -> None:
        if not reason:
            return
        finish = finish_of(reason, self._profile, _FINISHES)
        # Some models say STOP on every chunk, and some once more after the true reason.
        if finish is not Finish.STOP or candidate.finish is None:
            candidate.finish = finish


_NOTHING = _Candidate()


def _documents(body: bytes) -> list[dict[str, Any]]:
    """One response, or several in a list, as the streaming endpoint sends them without SSE."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise broken("the provider sent something that is not JSON") from None
    documents = document if isinstance(document, list) else [document]
    if not all(isinstance(entry, dict) for entry in documents):
        raise broken("the provider sent JSON that is no object")
    return documents


def _call(candidate: _Candidate, part: dict[str, Any]) -> ToolFragment:
    """A call, which comes whole and always as a new one."""
    call = object_of(part["functionCall"])
    arguments = call.get("args")
    if arguments is not None and not isinstance(arguments, dict):
        raise broken("the provider sent a tool call whose arguments are no object")
    if call.get("willContinue") or call.get("partialArgs"):
        raise broken("the provider sent a part of a tool call, which was not asked for")
    index = len(candidate.calls)
    candidate.layout.call(index, text_of(part.get("thoughtSignature")))
    return candidate.calls.begin(
        index,
        text_of(call.get("id")),
        text_of(call.get("name")),
        orjson.dumps(arguments or {}).decode(),
    )


def _text(candidate: _Candidate, part: dict[str, Any]) -> str:
    if any(part.get(name) is not None for name in _UNASKED):
        raise broken("the provider sent a kind of output that was not asked for")
    text = text_of(part.get("text"))
    candidate.layout.text(len(text), text_of(part.get("thoughtSignature")))
    return text


def in_band(error: Any) -> ProviderFailure:
    """An error that came inside a 200 response."""
    read = read_error(error)
    failure = failures.in_band(
        status=read.http_status,
        code=read.code,
        busy=read.status == "RESOURCE_EXHAUSTED",
    )
    failure.retry_after = read.retry_after
    return failure
