"""Puts the tool calls of one choice into the contract's form, fragment by fragment. Pure.

Parsers differ in how often they say a call's id and name, and in whether they make up an id.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.local_engine.engine import ToolCallDelta


@dataclass(slots=True)
class _Call:
    """A call so far; what is held back has come before its name."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    held: str = ""


class CallFragments:
    """The calls of one choice. Their indexes are the parser's: 0, 1, 2 in order of their names."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def __len__(self) -> int:
        """Calls that have been told of."""
        return sum(bool(call.name) for call in self._calls.values())

    def arguments(self, index: int) -> str:
        """The arguments of call `index`, as far as they have been told."""
        call = self._calls.get(index)
        return "" if call is None else call.arguments

    def name(self, index: int) -> str:
        """The name of call `index`; empty before it is told."""
        call = self._calls.get(index)
        return "" if call is None else call.name

    def add(self, news: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """What is to be told of it: one fragment a call, in the order in which they first came."""
        told: dict[int, ToolCallDelta] = {}
        for piece in news:
            fragment = self._fragment(piece)
            before = told.get(piece.index)
            if fragment is not None and before is not None:
                fragment = replace(before, arguments=before.arguments + fragment.arguments)
            if fragment is not None:
                told[piece.index] = fragment
        return tuple(told.values())

    def complete(self) -> tuple[ToolCallDelta, ...]:
        """An empty object for each call that has ended without arguments."""
        bare = [index for index, call in self._calls.items() if call.name and not call.arguments]
        return self.add(ToolCallDelta(index, arguments="{}") for index in bare)

    def _fragment(self, piece: ToolCallDelta) -> ToolCallDelta | None:
        call = self._calls.setdefault(piece.index, _Call())
        if call.name:
            call.arguments += piece.arguments
            return (
                ToolCallDelta(piece.index, arguments=piece.arguments) if piece.arguments else None
            )
        call.id = call.id or piece.id
        call.held += piece.arguments
        if not piece.name:
            return None
        call.name, call.arguments, call.held = piece.name, call.held, ""
        call.id = call.id or f"call-{secrets.token_hex(8)}"
        return ToolCallDelta(piece.index, call.id, call.name, call.arguments)
