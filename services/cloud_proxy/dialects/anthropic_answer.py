"""Decodes answers of Anthropic's Messages API, streamed and whole.

New kinds of events may come at any time and are passed over; new kinds of output are not, since
an answer without them would be passed off as complete.
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

# pause_turn is missing on purpose: the turn is not over, and only a further request with tools
# that run at the provider, which are never asked for, could finish it.
_FINISHES: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_COUNTS = (
    "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens",
)  # fmt: skip


class _Block:
    """One content block: its kind, the number of its call, and what of it must be replayed."""

    __slots__ = ("call", "kind", "opaque", "thinking")

    def __init__(self, kind: str, opaque: str = "", call: int = 0) -> None:
        self.kind = kind
        self.call = call
        # The signature of thinking, or redacted thinking itself.
        self.opaque = opaque
        self.thinking: list[str] = []

    def replayed(self) -> dict[str, str] | None:
        """The block as the provider wants it back; None for one that it does not want."""
        if self.kind == "redacted_thinking":
            return {"type": self.kind, "data": self.opaque}
        # Thinking whose end was cut off has no signature and would be refused.
        if self.kind == "thinking" and self.opaque:
            thinking = "".join(self.thinking)
            return {"type": self.kind, "thinking": thinking, "signature": self.opaque}
        return None


class MessagesAnswer:
    """Reads one answer; the API gives one choice."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._blocks: dict[int, _Block] = {}
        self._calls = ToolCalls()
        self._counts: dict[str, int] = {}
        self._finish: Finish | None = None
        self._matched_stop = ""
        self._marked = False

    @property
    def done(self) -> bool:
        """The terminal marker was seen: whatever follows says nothing."""
        return self._marked

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far: the prompt's at the start, the output's at the end."""
        fresh, read, written, output = (self._counts.get(name) for name in _COUNTS)
        if fresh is None:
            return None
        # The provider's input leaves out what its cache gave and took; ours holds both.
        prompt = count_of(fresh + (read or 0) + (written or 0)) or 0
        thought = self._counts.get("thinking_tokens", 0)
        return ProviderUsage(
            prompt, read or 0, output or 0, min(thought, output or 0), written or 0
        )

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one event says. Raises ProviderFailure."""
        data = event.data.strip()
        if not data:
            return []
        document = parse_object(data)
        if document.get("error"):
            raise _in_band(document)
        match text_of(document.get("type")) or event.name:
            case "message_start":
                return self._begin(object_of(document.get("message")))
            case "content_block_start":
                block = object_of(document.get("content_block"))
                return _delta(self._open(_index(document), block))
            case "content_block_delta":
                block = object_of(document.get("delta"))
                return _delta(self._extend(self._block(document), block))
            case "content_block_stop":
                self._block(document)
            case "message_delta":
                self._take_usage(document.get("usage"))
                return self._end(object_of(document.get("delta")))
            case "message_stop":
                self._marked = True
            case "error":
                raise _in_band(document)
            case _:
                if document.get("delta") or document.get("content_block"):
                    raise broken("the provider sent output in an event of an unknown kind")
        return []

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says. Raises ProviderFailure."""
        message = parse_object(body)
        if message.get("error"):
            raise _in_band(message)
        if not isinstance(message.get("content"), list):
            raise broken("the provider sent an answer without content")
        deltas = self._begin(message) + self._end(message)
        self._marked = True
        return deltas

    def ending(self) -> Ending:
        """The end of a complete answer. Raises ProviderFailure."""
        if not self._marked:
            raise broken("the provider's stream ended before it was finished")
        if self._finish is None:
            raise broken("the provider's answer ended without a stop reason")
        finish = settled(self._finish, self._calls)
        replay = {}
        if self._profile.reasoning.replay:
            kept = [b for block in self._blocks.values() if (b := block.replayed()) is not None]
            if kept:
                replay[0] = orjson.dumps(kept)
        matched = {0: self._matched_stop} if self._matched_stop else {}
        return Ending({0: finish}, self.usage, replay, matched)

    def _begin(self, message: dict[str, Any]) -> list[Delta]:
        """The message as it starts; one that does not stream is whole from the start."""
        self._take_usage(message.get("usage"))
        deltas = []
        for index, block in enumerate(list_of(message.get("content"))):
            if not isinstance(block, dict):
                raise broken("the provider sent a content block that is no object")
            deltas += _delta(self._open(index, block))
        return deltas

    def _take_usage(self, stated: Any) -> None:
        # Counts are running totals: they replace what was stated before. An absent or null one
        # says nothing, so the earlier one stands.
        usage = object_of(stated)
        details = object_of(usage.get("output_tokens_details"))
        found = {name: usage.get(name) for name in _COUNTS}
        found["thinking_tokens"] = details.get("thinking_tokens")
        for name, value in found.items():
            count = count_of(value)
            if count is not None:
                self._counts[name] = count

    def _end(self, delta: dict[str, Any]) -> list[Delta]:
        """Takes the stop reason, and completes calls that came without arguments."""
        reason = delta.get("stop_reason")
        if reason is None:
            return []
        self._finish = finish_of(reason, self._profile, _FINISHES)
        self._matched_stop = text_of(delta.get("stop_sequence"))
        closing = self._calls.close()
        return [Delta(0, tools=closing)] if closing else []

    def _open(self, index: int, start: dict[str, Any]) -> Delta:
        """A new block; streamed ones begin empty, others are complete here."""
        if index in self._blocks:
            raise broken("the provider began the same content block twice")
        kind = text_of(start.get("type"))
        block = self._blocks[index] = _Block(kind)
        match kind:
            case "text":
                return Delta(0, text=text_of(start.get("text")))
            case "thinking":
                block.opaque = text_of(start.get("signature"))
                return self._thought(block, text_of(start.get("thinking")))
            case "redacted_thinking":
                block.opaque = text_of(start.get("data"))
                return Delta(0)
            case "tool_use":
                block.call = len(self._calls)
                return _tool(
                    self._calls.begin(
                        block.call,
                        text_of(start.get("id")),
                        text_of(start.get("name")),
                        # Streamed input starts as an empty object that the fragments replace.
                        arguments_text(start.get("input") or None),
                    )
                )
            case _:
                if any(value for name, value in start.items() if name != "type"):
                    raise _unknown_output()
                return Delta(0)

    def _extend(self, block: _Block, delta: dict[str, Any]) -> Delta:
        """More of a block."""
        match block.kind, text_of(delta.get("type")):
            case "text", "text_delta":
                return Delta(0, text=text_of(delta.get("text")))
            case "thinking", "thinking_delta":
                return self._thought(block, text_of(delta.get("thinking")))
            case "thinking", "signature_delta":
                # It comes in one piece, for the block as a whole.
                block.opaque = text_of(delta.get("signature"))
            case "tool_use", "input_json_delta":
                return _tool(self._calls.extend(block.call, text_of(delta.get("partial_json"))))
            case _:
                if any(value for name, value in delta.items() if name != "type"):
                    raise _unknown_output()
        return Delta(0)

    def _thought(self, block: _Block, thinking: str) -> Delta:
        if thinking:
            block.thinking.append(thinking)
        return Delta(0, reasoning=thinking)

    def _block(self, document: dict[str, Any]) -> _Block:
        """The block that an event speaks of."""
        block = self._blocks.get(_index(document))
        if block is None:
            raise broken("the provider sent part of a content block that it had not begun")
        return block


def _index(document: dict[str, Any]) -> int:
    index = document.get("index")
    if isinstance(index, bool) or not isinstance(index, int):
        raise broken("the provider sent a content block without an index")
    return index


def _delta(delta: Delta) -> list[Delta]:
    """What is delivered: nothing for a delta that says nothing, which would count as progress."""
    return [delta] if delta.text or delta.reasoning or delta.tools else []


def _tool(fragment: ToolFragment) -> Delta:
    said = fragment.id or fragment.arguments
    return Delta(0, tools=(fragment,) if said else ())


def _in_band(document: dict[str, Any]) -> ProviderFailure:
    """An error that came inside a response with status 200."""
    return failures.in_band(code=text_of(object_of(document.get("error")).get("type")))


def _unknown_output() -> ProviderFailure:
    return broken("the provider sent output of an unknown kind")
