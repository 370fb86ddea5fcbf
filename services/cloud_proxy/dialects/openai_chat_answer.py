"""Decodes answers of OpenAI's chat completions, streamed and whole, with the known deviations.

Tolerant of form (where usage stands, missing or repeated fields, empty choices), strict about
ends: an answer without its terminal marker and a known finish reason is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from services.cloud_proxy.answer import (
    Delta,
    Ending,
    FailureKind,
    Finish,
    ProviderFailure,
    ProviderUsage,
    ToolFragment,
)
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.sse import SseEvent

_FINISHES: Mapping[str, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}
_MOST_CALLS = 128
_COUNT_LIMIT = 2**31 - 1


def broken(message: str) -> ProviderFailure:
    """An answer that is not what the format promises."""
    return ProviderFailure(FailureKind.BROKEN, message)


class _Call:
    """One tool call while its fragments arrive."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class _Choice:
    """What is known of one choice so far."""

    __slots__ = ("calls", "finish", "reasoning", "refused")

    def __init__(self) -> None:
        self.calls: dict[int, _Call] = {}
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

    def event(self, event: SseEvent) -> list[Delta]:
        """What one event says. Raises ProviderFailure."""
        data = event.data.strip()
        if not data:
            return []
        if data == b"[DONE]":
            self._marked = True
            return []
        return self._body(self._parse(data), "delta")

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says. Raises ProviderFailure."""
        deltas = self._body(self._parse(body), "message")
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
            if self._profile.reasoning.replay and choice.calls and choice.reasoning:
                replay[number] = "".join(choice.reasoning).encode()
        return Ending(finishes, self._usage, replay)

    def _finish_of(self, number: int) -> Finish | None:
        choice = self._choices.get(number)
        return choice.finish if choice else None

    def _settle(self, choice: _Choice) -> Finish:
        finish = choice.finish or Finish.STOP
        if finish is Finish.STOP and choice.calls:
            # Some providers end a turn of text and tools with "stop".
            finish = Finish.TOOL_CALLS
        if finish is Finish.STOP and choice.refused:
            finish = Finish.CONTENT_FILTER
        if finish is Finish.TOOL_CALLS:
            if not choice.calls:
                raise broken("the provider announced tool calls and sent none")
            for call in choice.calls.values():
                _check_arguments(call)
        return finish

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far; providers that state it early allow a partial account."""
        return self._usage

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise broken("the provider sent something that is not JSON") from None
        if not isinstance(document, dict):
            raise broken("the provider sent JSON that is no object")
        return document

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
            if self._profile.usage_placement == "choice":
                self._take_usage(entry.get("usage"))
            delta = self._choice(entry, key)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _take_usage(self, stated: Any) -> None:
        # Replaced, never added: some state it twice, some on every chunk as a running total.
        if isinstance(stated, dict):
            self._usage = read_usage(stated) or self._usage

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
            choice.finish = self._finish(reason)
            closing = self._empty_calls(choice)
            if closing:
                delta = _with_tools(delta or Delta(number), closing)
        return delta

    def _delta(self, number: int, choice: _Choice, body: dict[str, Any]) -> Delta | None:
        text = _text(body.get("content"))
        refusal = _text(body.get("refusal"))
        if refusal:
            choice.refused = True
            text += refusal
        field = self._profile.reasoning.text_field
        reasoning = _text(body.get(field)) if field else ""
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
            function = entry.get("function")
            function = function if isinstance(function, dict) else {}
            identity = _text(entry.get("id"))
            index = entry.get("index")
            if not isinstance(index, int):
                index = _implied_index(choice, identity)
            if not 0 <= index < _MOST_CALLS:
                raise broken("the provider sent more tool calls than are sensible")
            call = choice.calls.get(index)
            arguments = function.get("arguments")
            if isinstance(arguments, dict):
                arguments = orjson.dumps(arguments).decode()
            arguments = _text(arguments)
            if call is None:
                call = choice.calls[index] = _Call()
                call.id, call.name = identity, _text(function.get("name"))
                if not call.name:
                    raise broken("the provider sent a tool call without a name")
                # Some send no id; the tool's answer must still be able to name its call.
                call.id = call.id or f"call_{index}"
                fragment = ToolFragment(index, call.id, call.name, arguments)
            else:
                fragment = ToolFragment(index, arguments=arguments)
            if arguments:
                call.arguments.append(arguments)
            found.append(fragment)
        return tuple(found)

    def _empty_calls(self, choice: _Choice) -> tuple[ToolFragment, ...]:
        """Calls that ended without arguments get the empty object."""
        closing = []
        for index, call in choice.calls.items():
            if not call.arguments:
                call.arguments.append("{}")
                closing.append(ToolFragment(index, arguments="{}"))
        return tuple(closing)

    def _finish(self, reason: Any) -> Finish:
        name = str(reason)
        meaning = self._profile.finish_reasons.get(name) or _FINISHES.get(name, "error")
        if meaning == "error":
            raise ProviderFailure(
                FailureKind.FAILED,
                "the provider ended the answer with a failure",
                code=name[:64] if name.isprintable() else "",
            )
        return Finish(meaning)


def read_usage(stated: dict[str, Any]) -> ProviderUsage | None:
    """Usage in any of the known spellings; None when it holds no prompt count."""
    prompt = _count(stated.get("prompt_tokens"))
    completion = _count(stated.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = stated.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    if cached is None:
        # DeepSeek's name, then Moonshot's.
        cached = _count(stated.get("prompt_cache_hit_tokens"))
    if cached is None:
        cached = _count(stated.get("cached_tokens"))
    details = stated.get("completion_tokens_details")
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    return ProviderUsage(prompt, min(cached or 0, prompt), completion, reasoning or 0)


def in_band(error: Any) -> ProviderFailure:
    """An error that came inside a 200 response."""
    code, status = "", None
    if isinstance(error, dict):
        raw = error.get("code")
        if isinstance(raw, int) and 400 <= raw <= 599:
            status = raw
        else:
            code = str(raw or error.get("type") or "")[:64]
    kind = FailureKind.FAILED
    if status == 429 or "rate_limit" in code:
        kind = FailureKind.BUSY
    return ProviderFailure(
        kind, "the provider failed while answering", http_status=status, code=code
    )


def _implied_index(choice: _Choice, identity: str) -> int:
    for index, call in choice.calls.items():
        if identity and call.id == identity:
            return index
    if identity or not choice.calls:
        return len(choice.calls)
    return max(choice.calls)


def _check_arguments(call: _Call) -> None:
    try:
        orjson.loads("".join(call.arguments))
    except orjson.JSONDecodeError:
        raise broken("the provider sent a tool call whose arguments are not JSON") from None


def _with_tools(delta: Delta, tools: tuple[ToolFragment, ...]) -> Delta:
    return Delta(delta.choice, delta.text, delta.reasoning, (*delta.tools, *tools))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return min(max(value, 0), _COUNT_LIMIT)
