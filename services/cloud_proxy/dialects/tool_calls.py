"""The tool calls of one choice while their fragments arrive, the same for every dialect."""

from __future__ import annotations

from typing import Any

import orjson

from services.cloud_proxy.answer import ToolFragment
from services.cloud_proxy.dialects.fields import broken

MOST_CALLS = 128


class _Call:
    __slots__ = ("arguments", "id", "name")

    def __init__(self, identity: str, name: str) -> None:
        self.id = identity
        self.name = name
        self.arguments: list[str] = []


class ToolCalls:
    """Calls by their index, from 0. Methods raise ProviderFailure for what is no proper call."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, index: int) -> bool:
        return index in self._calls

    def index_of(self, identity: str) -> int | None:
        """The call with this id, if there is one."""
        for index, call in self._calls.items():
            if identity and call.id == identity:
                return index
        return None

    def id_of(self, index: int) -> str:
        """The id of a call that has begun."""
        return self._calls[index].id

    @property
    def latest(self) -> int:
        """The highest index so far; 0 without calls."""
        return max(self._calls, default=0)

    def begin(self, index: int, identity: str, name: str, arguments: str = "") -> ToolFragment:
        """A new call. One without an id gets one: the tool's answer must be able to name it."""
        if not 0 <= index < MOST_CALLS:
            raise broken("the provider sent more tool calls than are sensible")
        if not name:
            raise broken("the provider sent a tool call without a name")
        call = self._calls[index] = _Call(identity or f"call_{index}", name)
        if arguments:
            call.arguments.append(arguments)
        return ToolFragment(index, call.id, call.name, arguments)

    def extend(self, index: int, arguments: str) -> ToolFragment:
        """More of a call's arguments."""
        call = self._calls.get(index)
        if call is None:
            raise broken("the provider sent arguments of a tool call that it had not begun")
        if arguments:
            call.arguments.append(arguments)
        return ToolFragment(index, arguments=arguments)

    def close(self) -> tuple[ToolFragment, ...]:
        """Calls that ended without arguments get the empty object, which is returned."""
        closing = []
        for index, call in self._calls.items():
            if not call.arguments:
                call.arguments.append("{}")
                closing.append(ToolFragment(index, arguments="{}"))
        return tuple(closing)

    def check(self) -> None:
        """Raises unless every call's joined arguments are JSON."""
        for call in self._calls.values():
            try:
                orjson.loads("".join(call.arguments))
            except orjson.JSONDecodeError:
                raise broken("the provider sent a tool call whose arguments are not JSON") from None


def arguments_text(value: Any) -> str:
    """Arguments as JSON text, whether they came as text or as a value; "" when there are none.

    Raises ProviderFailure for a value that is nested too deeply: it can be read, not written.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise broken(
            "the provider sent a tool call whose arguments are nested too deeply"
        ) from None
