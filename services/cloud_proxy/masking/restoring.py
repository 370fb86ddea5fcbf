"""Puts values back in place of placeholders, in an answer that comes in pieces.

Holds back only what may still become a placeholder, at the end of each text by itself; nothing else
waits. What only looks like a placeholder passes as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from services.cloud_proxy.answer import Delta, ToolFragment
from services.cloud_proxy.masking.placeholders import Placeholders

Shown = Callable[[str], str]
"""How a value is written where it is put."""


class _Stream:
    """One text while its pieces arrive."""

    __slots__ = ("_held", "_placeholders", "_shown")

    def __init__(self, placeholders: Placeholders, shown: Shown) -> None:
        self._placeholders = placeholders
        self._shown = shown
        self._held = ""

    def restored(self, piece: str) -> str:
        known = self._placeholders
        text = self._held + piece
        at = text.find(known.opener)
        if at < 0:
            self._held = ""
            return text
        out: list[str] = []
        after = 0
        while at >= 0:
            made = known.at(text, at)
            if made:
                out += text[after:at], self._shown(known.value(made) or "")
                after = at + len(made)
                at = text.find(known.opener, after)
            elif len(text) - at < known.longest and known.may_begin(text[at:]):
                break
            else:
                at = text.find(known.opener, at + 1)
        until = len(text) if at < 0 else at
        self._held = text[until:]
        out.append(text[after:until])
        return "".join(out)

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


class Restorer:
    """One answer of one request.

    `json_text`: the answer's text is JSON, as arguments of tool calls always are, so what is put
    into it is escaped.
    """

    def __init__(self, placeholders: Placeholders, *, json_text: bool) -> None:
        self._placeholders = placeholders
        self._text_shown: Shown = _escaped if json_text else _as_it_is
        self._texts: dict[int, _Stream] = {}
        self._reasoning: dict[int, _Stream] = {}
        self._arguments: dict[int, dict[int, _Stream]] = {}

    def restored(self, delta: Delta) -> Delta:
        """What of it can be told now, with what was held back before; it may be empty."""
        text, reasoning = delta.text, delta.reasoning
        if text:
            text = self._stream(self._texts, delta.choice, self._text_shown).restored(text)
        if reasoning:
            stream = self._stream(self._reasoning, delta.choice, _as_it_is)
            reasoning = stream.restored(reasoning)
        tools = delta.tools
        if tools:
            tools = self._fragments(delta.choice, tools)
        return Delta(delta.choice, text, reasoning, tools)

    def rest(self, choice: int) -> Delta:
        """What is still held back of a choice that has ended: beginnings that were cut off."""
        texts = [
            streams[choice].rest() if choice in streams else ""
            for streams in (self._texts, self._reasoning)
        ]
        calls = self._arguments.get(choice, {})
        rests = [(index, stream.rest()) for index, stream in calls.items()]
        tools = tuple(ToolFragment(index, arguments=rest) for index, rest in rests if rest)
        return Delta(choice, texts[0], texts[1], tools)

    def _fragments(
        self, choice: int, fragments: tuple[ToolFragment, ...]
    ) -> tuple[ToolFragment, ...]:
        calls = self._arguments.setdefault(choice, {})
        told = []
        for fragment in fragments:
            arguments = fragment.arguments
            if arguments:
                arguments = self._stream(calls, fragment.index, _escaped).restored(arguments)
            # A call's id and name wait for nothing.
            if arguments or fragment.id or fragment.name:
                told.append(ToolFragment(fragment.index, fragment.id, fragment.name, arguments))
        return tuple(told)

    def _stream(self, streams: dict[int, _Stream], number: int, shown: Shown) -> _Stream:
        stream = streams.get(number)
        if stream is None:
            stream = streams[number] = _Stream(self._placeholders, shown)
        return stream


def _as_it_is(value: str) -> str:
    return value


def _escaped(value: str) -> str:
    return orjson.dumps(value).decode()[1:-1]
