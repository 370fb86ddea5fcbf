"""Decodes answers of OpenAI's chat completions, streamed and whole, with the known deviations.

Tolerant of form (where usage stands, missing or repeated fields, empty choices), strict about
ends: an answer without its terminal marker and a known finish reason is a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from services.cloud_proxy.answer import (
    Delta,
    Ending,
    Finish,
    ProviderUsage,
    ToolFragment,
)
from services.cloud_proxy.dialects.fields import broken, parse_object, text_of
from services.cloud_proxy.dialects.finishes import finish_of, settled
from services.cloud_proxy.dialects.openai_chat_content import content_of, reasoning_of
from services.cloud_proxy.dialects.openai_chat_errors import raise_event, raise_in_band
from services.cloud_proxy.dialects.openai_chat_tools import ToolFragments
from services.cloud_proxy.dialects.openai_chat_usage import usage_in
from services.cloud_proxy.dialects.tool_calls import ToolCalls
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

    __slots__ = ("calls", "finish", "fragments", "reasoning", "refused", "stop")

    def __init__(self) -> None:
        self.calls = ToolCalls()
        self.fragments = ToolFragments(self.calls)
        self.finish: Finish | None = None
        self.refused = False
        self.reasoning: list[str] = []
        self.stop = ""


class ChatAnswer:
    """Reads one answer with `choices` choices; `stops` are the stop strings that were asked for."""

    def __init__(self, profile: Profile, choices: int, stops: Collection[str] = ()) -> None:
        self._profile = profile
        self._wanted = choices
        self._stops = stops
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
        if event.name == "error":
            raise_event(parse_object(data))
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
        finishes, replay, stops = {}, {}, {}
        for number, choice in sorted(self._choices.items()):
            finishes[number] = self._settle(choice)
            if choice.stop and finishes[number] is Finish.STOP:
                stops[number] = choice.stop
            if self._profile.reasoning.replay and len(choice.calls) and choice.reasoning:
                replay[number] = "".join(choice.reasoning).encode()
        return Ending(finishes, self._usage, replay, stops)

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
        raise_in_band(document)
        self._take_usage(document)
        deltas = []
        choices = document.get("choices")
        for entry in choices if isinstance(choices, list) else ():
            if not isinstance(entry, dict):
                raise broken("the provider sent a choice that is no object")
            if self._profile.usage.placement == "choice":
                self._take_usage(entry)
            # OpenRouter's place for the failure of one choice.
            if entry.get("error"):
                raise_in_band(entry)
            delta = self._choice(entry, key)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _take_usage(self, document: dict[str, Any]) -> None:
        # Replaced, never added: some state it twice, some on every chunk as a running total.
        self._usage = usage_in(document, self._profile) or self._usage

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
        # vLLM's name, then SGLang's; either may be a token, and others use them for other things.
        for stop in (entry.get("stop_reason"), entry.get("matched_stop")):
            if isinstance(stop, str) and stop in self._stops:
                choice.stop = stop
        reason = entry.get("finish_reason")
        # "" on chunks that do not end anything is how some say null.
        if reason:
            finish = finish_of(reason, self._profile, _FINISHES)
            # What cut an answer is not taken back by a further chunk that says stop.
            if finish is not Finish.STOP or choice.finish is None:
                choice.finish = finish
            closing = choice.calls.close()
            if closing:
                delta = _with_tools(delta or Delta(number), closing)
        return delta

    def _delta(self, number: int, choice: _Choice, body: dict[str, Any]) -> Delta | None:
        text, reasoning = content_of(body.get("content"))
        refusal = text_of(body.get("refusal"))
        if refusal:
            choice.refused = True
            text += refusal
        field = self._profile.reasoning.text_field
        if field and not reasoning:
            reasoning = reasoning_of(body, field, choice.reasoning)
        if reasoning:
            choice.reasoning.append(reasoning)
        tools: tuple[ToolFragment, ...] = ()
        if body.get("function_call"):
            # The form before tool_calls, which no request of ours asks for.
            raise broken("the provider sent a function call in place of a tool call")
        if body.get("tool_calls"):
            tools = choice.fragments.take(body["tool_calls"])
        if text or reasoning or tools:
            return Delta(number, text, reasoning, tools)
        return None


def _with_tools(delta: Delta, tools: tuple[ToolFragment, ...]) -> Delta:
    return Delta(delta.choice, delta.text, delta.reasoning, (*delta.tools, *tools))
