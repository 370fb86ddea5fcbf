"""Decodes answers of Ollama's /api/chat: JSON lines, or one such object for a whole answer.

The line with "done": true ends an answer; one without a known reason for it is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.cloud_proxy.answer import Delta, Ending, Finish, ProviderUsage, ToolFragment
from services.cloud_proxy.dialects import failures
from services.cloud_proxy.dialects.fields import (
    broken,
    count_of,
    list_of,
    object_of,
    parse_object,
    text_of,
)
from services.cloud_proxy.dialects.finishes import finish_of, settled
from services.cloud_proxy.dialects.tool_calls import ToolCalls, arguments_text
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.streams import StreamEvent

# "load" and "unload" answer requests that had no messages, so for ours they are failures.
_FINISHES: Mapping[str, str] = {"stop": "stop", "length": "length"}


class OllamaAnswer:
    """Reads one answer; there is only ever one choice."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._calls = ToolCalls()
        self._thinking: list[str] = []
        self._finish: Finish | None = None
        self._usage: ProviderUsage | None = None

    @property
    def done(self) -> bool:
        """The last line was seen: whatever follows says nothing."""
        return self._finish is not None

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far; the last line states it."""
        return self._usage

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one line says. Raises ProviderFailure."""
        data = event.data.strip()
        return self._line(parse_object(data)) if data else []

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says. Raises ProviderFailure."""
        return self._line(parse_object(body))

    def ending(self) -> Ending:
        """The end of a complete answer. Raises ProviderFailure."""
        if self._finish is None:
            raise broken("the provider's stream ended before it was finished")
        finish = settled(self._finish, self._calls)
        replay = {}
        if self._profile.reasoning.replay and len(self._calls) and self._thinking:
            replay[0] = "".join(self._thinking).encode("utf-8", "replace")
        return Ending({0: finish}, self._usage, replay)

    def _line(self, document: dict[str, Any]) -> list[Delta]:
        if document.get("error"):
            # Only words, and they may speak of the machine.
            raise failures.in_band()
        self._take_usage(document)
        delta = self._message(document.get("message"))
        if document.get("done") is True:
            reason = document.get("done_reason")
            if not reason:
                raise broken("the provider's answer ended without a finish reason")
            self._finish = finish_of(reason, self._profile, _FINISHES)
        return [delta] if delta.text or delta.reasoning or delta.tools else []

    def _take_usage(self, stated: dict[str, Any]) -> None:
        prompt = count_of(stated.get("prompt_eval_count"))
        # Go leaves out a count of zero. That of the prompt is missing only where it is not known.
        if prompt is not None:
            completion = count_of(stated.get("eval_count")) or 0
            # Part of the prompt's count; servers before 0.33.3 do not tell it.
            cached = count_of(stated.get("prompt_eval_cached_count")) or 0
            self._usage = ProviderUsage(prompt, min(cached, prompt), completion, 0)

    def _message(self, message: Any) -> Delta:
        if message is not None and not isinstance(message, dict):
            raise broken("the provider sent a message that is no object")
        message = object_of(message)
        thinking = text_of(message.get("thinking"))
        if thinking:
            self._thinking.append(thinking)
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise broken("the provider sent tool calls that are no list")
        tools = tuple(self._call(entry) for entry in list_of(calls))
        return Delta(0, text_of(message.get("content")), thinking, tools)

    def _call(self, entry: Any) -> ToolFragment:
        """A call, which comes whole and always as a new one, whatever its index says."""
        function = object_of(object_of(entry).get("function"))
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, dict):
            raise broken("the provider sent a tool call whose arguments are no object")
        return self._calls.begin(
            len(self._calls),
            text_of(object_of(entry).get("id")),
            text_of(function.get("name")),
            arguments_text(arguments or {}),
        )
