"""Which call each fragment of OpenAI's tool_calls belongs to, in the providers' spellings.

Some count from 1, some say 0 for every call and tell them apart by their ids, some say nothing.
"""

from __future__ import annotations

from typing import Any

from services.cloud_proxy.answer import ToolFragment
from services.cloud_proxy.dialects.fields import broken, object_of, text_of
from services.cloud_proxy.dialects.tool_calls import MOST_CALLS, ToolCalls, arguments_text


class ToolFragments:
    """Puts the fragments of one choice into `calls`, whose indices have no gaps."""

    __slots__ = ("_calls", "_places")

    def __init__(self, calls: ToolCalls) -> None:
        self._calls = calls
        # The index of a call by the one that the provider gives it.
        self._places: dict[int, int] = {}

    def take(self, entries: Any) -> tuple[ToolFragment, ...]:
        """The fragments of one chunk, or all calls of a whole answer. Raises ProviderFailure."""
        if not isinstance(entries, list):
            raise broken("the provider sent tool calls that are no list")
        return tuple(self._fragment(entry) for entry in entries)

    def _fragment(self, entry: Any) -> ToolFragment:
        if not isinstance(entry, dict):
            raise broken("the provider sent a tool call that is no object")
        function = object_of(entry.get("function"))
        identity, name = text_of(entry.get("id")), text_of(function.get("name"))
        arguments = arguments_text(function.get("arguments"))
        place = entry.get("index")
        if isinstance(place, int):
            index = self._placed(place, identity, name)
        else:
            index = self._implied(identity, name)
        if index in self._calls:
            return self._calls.extend(index, arguments)
        return self._calls.begin(index, identity, name, arguments)

    def _placed(self, place: int, identity: str, name: str) -> int:
        if not 0 <= place < MOST_CALLS:
            raise broken("the provider sent more tool calls than are sensible")
        index = self._places.get(place)
        # An id alone is not enough: some make up a new one for every fragment.
        other = index is not None and name and identity and identity != self._calls.id_of(index)
        if index is None or other:
            index = self._places[place] = len(self._calls)
        return index

    def _implied(self, identity: str, name: str) -> int:
        known = self._calls.index_of(identity)
        if known is not None:
            return known
        begins = identity or name or not len(self._calls)
        return len(self._calls) if begins else self._calls.latest
