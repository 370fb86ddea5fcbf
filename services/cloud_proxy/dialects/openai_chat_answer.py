"""Decodes answers of OpenAI's chat completions, streamed and whole, with the known deviations.

Tolerant of form (where usage stands, missing or repeated fields, empty choices), strict about
ends: an answer without its terminal marker and a known finish reason is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.cloud_proxy.answer import (
    Delta,
    Ending,
    Finish,
    ProviderFailure,
    ProviderUsage,
    ToolFragment,
)
from services.cloud_proxy.dialects import failures
from services.cloud_proxy.dialects.fields import broken, count_of, object_of, parse_object, text_of
from services.cloud_proxy.dialects.finishes import finish_of, settled
from services.cloud_proxy.dialects.tool_calls import ToolCalls, arguments_text
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.streams import StreamEvent

_FINISHES: Mapping[str, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class _Choice:
    """What is known of one choice so far."""

    __slots__ = ("calls", "finish", "reasoning", "refused")

    def __init__(self) -> None:
        self.calls = ToolCalls()
        self.finish: Finish | None = None
        self.refused = False
        self.reasoning: list[str] = []


class ChatAnswer:
    """Reads one answer with `choices` choices."""

    def __init__(self, profile: Profile, choices: int) -> None:
        self._profile = profile
        self._wanted = choices
        self._choices: dict[int, _Choice] = {}
        self._usage: ProviderUsage | None = None
        self._marked = False

    @property
    def done(self) -> bool:
        """The terminal marker was seen: whatever follows says nothing."""
        return self._marked

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one event says. Raises ProviderFailure."""
        data = event.data.strip()
        if not data:
            return []
        if data == b"[DONE]":
            self._marked = True
            return []
        return self._body(parse_object(data), "delta")

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says. Raises ProviderFailure."""
        deltas = self._body(parse_object(body), "message")
        self._marked = True
        return deltas

    def ending(self) -> Ending:
        """The end of a complete answer. Raises ProviderFailure."""
        if not self._marked and self._profile.terminal == "done":
            raise broken("the provider's stream ended before it was finished")
        unfinished = [n for n in range(self._wanted) if not self._finish_of(n)]
        if unfinished:
            raise broken("the provider's answer ended without a finish reason")
        finishes, replay = {}, {}
        for number, choice in sorted(self._choices.items()):
            finishes[number] = self._settle(choice)
            if self._profile.reasoning.replay and len(choice.calls) and choice.reasoning:
                replay[number] = "".join(choice.reasoning).encode()
        return Ending(finishes, self._usage, replay)

    def _finish_of(self, number: int) -> Finish | None:
        choice = self._choices.get(number)
        return choice.finish if choice else None

    def _settle(self, choice: _Choice) -> Finish:
        finish = settled(choice.finish or Finish.STOP, choice.calls)
        if finish is Finish.STOP and choice.refused:
            finish = Finish.CONTENT_FILTER
        return finish

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far; providers that state it early allow a partial account."""
        return self._usage

    def _body(self, document: dict[str, Any], key: str) -> list[Delta]:
        error = document.get("error")
        if error:
            raise in_band(error)
        self._take_usage(document.get("usage"))
        deltas = []
        choices = document.get("choices")
        for entry in choices if isinstance(choices, list) else ():
            if not isinstance(entry, dict):
                raise broken("the provider sent a choice that is no object")
            if self._profile.usage.placement == "choice":
                self._take_usage(entry.get("usage"))
            delta = self._choice(entry, key)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _take_usage(self, stated: Any) -> None:
        # Replaced, never added: some state it twice, some on every chunk as a running total.
        if isinstance(stated, dict):
            self._usage = read_usage(stated, self._profile) or self._usage

    def _choice(self, entry: dict[str, Any], key: str) -> Delta | None:
        number = entry.get("index") or 0
        if not isinstance(number, int) or not 0 <= number < self._wanted:
            raise broken("the provider sent a choice that was not asked for")
        choice = self._choices.get(number)
        if choice is None:
            choice = self._choices[number] = _Choice()
        body = entry.get(key)
        delta = None
        if isinstance(body, dict):
            delta = self._delta(number, choice, body)
        reason = entry.get("finish_reason")
        if reason:
            choice.finish = finish_of(reason, self._profile, _FINISHES)
            closing = choice.calls.close()
            if closing:
                delta = _with_tools(delta or Delta(number), closing)
        return delta

    def _delta(self, number: int, choice: _Choice, body: dict[str, Any]) -> Delta | None:
        text = text_of(body.get("content"))
        refusal = text_of(body.get("refusal"))
        if refusal:
            choice.refused = True
            text += refusal
        field = self._profile.reasoning.text_field
        reasoning = text_of(body.get(field)) if field else ""
        if reasoning and self._profile.reasoning.replay:
            choice.reasoning.append(reasoning)
        tools: tuple[ToolFragment, ...] = ()
        if body.get("tool_calls"):
            tools = self._fragments(choice, body["tool_calls"])
        if text or reasoning or tools:
            return Delta(number, text, reasoning, tools)
        return None

    def _fragments(self, choice: _Choice, entries: Any) -> tuple[ToolFragment, ...]:
        if not isinstance(entries, list):
            raise broken("the provider sent tool calls that are no list")
        found = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise broken("the provider sent a tool call that is no object")
            function = object_of(entry.get("function"))
            identity = text_of(entry.get("id"))
            index = entry.get("index")
            if not isinstance(index, int):
                index = _implied_index(choice.calls, identity)
            arguments = arguments_text(function.get("arguments"))
            if index in choice.calls:
                found.append(choice.calls.extend(index, arguments))
            else:
                name = text_of(function.get("name"))
                found.append(choice.calls.begin(index, identity, name, arguments))
        return tuple(found)


def read_usage(stated: dict[str, Any], profile: Profile) -> ProviderUsage | None:
    """Usage in any of the known spellings; None when it holds no prompt count."""
    prompt = count_of(stated.get("prompt_tokens"))
    completion = count_of(stated.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = count_of(object_of(stated.get("prompt_tokens_details")).get("cached_tokens"))
    if cached is None:
        # DeepSeek's name, then Moonshot's.
        cached = count_of(stated.get("prompt_cache_hit_tokens"))
    if cached is None:
        cached = count_of(stated.get("cached_tokens"))
    details = object_of(stated.get("completion_tokens_details"))
    reasoning = count_of(details.get("reasoning_tokens")) or 0
    if profile.usage.reasoning == "added":
        completion += reasoning
    return ProviderUsage(prompt, min(cached or 0, prompt), completion, reasoning)


def in_band(error: Any) -> ProviderFailure:
    """An error that came inside a 200 response."""
    code, status = "", None
    if isinstance(error, dict):
        raw = error.get("code")
        if isinstance(raw, int) and 400 <= raw <= 599:
            status = raw
        else:
            code = str(raw or error.get("type") or "")
    return failures.in_band(status=status, code=code)


def _implied_index(calls: ToolCalls, identity: str) -> int:
    """Which call a fragment without an index belongs to."""
    known = calls.index_of(identity)
    if known is not None:
        return known
    return len(calls) if identity or not len(calls) else calls.latest


def _with_tools(delta: Delta, tools: tuple[ToolFragment, ...]) -> Delta:
    return Delta(delta.choice, delta.text, delta.reasoning, (*delta.tools, *tools))
