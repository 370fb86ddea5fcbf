"""How the text of one environment variable becomes a value of a type, and the type's name in help.

It knows neither variables nor files: settings.py does.
"""

from __future__ import annotations

import hmac
import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_UNIT_SECONDS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_WITH_UNIT = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(us|ms|s|m|h|d|)"
)


class Secret:
    """A value that shows itself only through `reveal()`, never in a repr, a log or an error."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))


def parse(text: str, kind: Any) -> Any:
    """Raises ValueError whose text completes the sentence that begins with the variable's name."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in typing.get_args(kind) if a is not type(None))
        return None if text == "" else parse(text, inner)
    if origin is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")
        return text
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(parse(part.strip(), item) for part in text.split(",") if part.strip())
    parser = _PARSERS.get(kind)
    if parser is None:
        raise TypeError(f"settings cannot hold {kind!r}")
    return parser(text)


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(f"must be true or false, not {text!r}")


def _parse_int(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d+(_\d+)*\s*", text, re.ASCII):
        raise ValueError(f"must be a whole number, not {text!r}")
    return int(text)


def _parse_float(text: str) -> float:
    match = _NUMBER_WITH_UNIT.fullmatch(text.strip())
    if match is None or not math.isfinite(number := float(match[1])):
        raise ValueError(f"must be a number or a duration such as 500ms, 30s or 2m, not {text!r}")
    return number * _UNIT_SECONDS[match[2]]


def _parse_secret(text: str) -> Secret:
    if not text:
        raise ValueError("must not be empty")
    return Secret(text)


def _parse_path(text: str) -> Path:
    if not text:
        raise ValueError("must not be empty")
    return Path(text)


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    Secret: _parse_secret,
    Path: _parse_path,
}


def type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = " or ".join(type_name(a) for a in typing.get_args(kind) if a is not type(None))
        return f"optional {inner}"
    if origin is Literal:
        return "|".join(typing.get_args(kind))
    if origin is tuple:
        return f"{type_name(typing.get_args(kind)[0])}, comma separated"
    names = {Secret: "secret", float: "number", int: "integer", str: "text", Path: "path"}
    return names.get(kind, str(kind.__name__))
