"""Holds a document against policy.schema.json, and says each fault in an operator's words.

The schema has four keywords of its own: `x-seconds`, `x-bytes` and `x-usd` bound quantities that
may carry a unit, and `x-must` is what is said of a value that does not satisfy the rest. What one
part of a document means for another is checked in checks.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from services.chassis import units
from services.router.policy.problems import KeyPath
from services.router.policy.text import UNREADABLE

_SCHEMA = Path(__file__).parent / "policy.schema.json"
_TYPES = {
    "object": "a mapping, lines of `key: value`",
    "array": "a list",
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}


def faults(document: Any) -> list[tuple[KeyPath, str]]:
    """Every violation as a path and what must be there."""
    return list(_told(_validator().iter_errors(document)))


@cache
def schema() -> dict[str, Any]:
    """The schema itself."""
    loaded: dict[str, Any] = orjson.loads(_SCHEMA.read_bytes())
    return loaded


@cache
def _validator() -> Any:
    kind = extend(
        Draft202012Validator,
        {
            "pattern": _matches_whole,
            "uniqueItems": _names_once,
            "x-seconds": _within(units.seconds, units.write_seconds),
            "x-bytes": _within(units.size, lambda value: str(units.write_size(int(value)))),
            "x-usd": _within(
                lambda usd: units.microusd(usd) / 1_000_000, lambda value: f"{value:.0f}"
            ),
        },
    )
    return kind(_inlined(schema(), schema()["$defs"]))


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A part of the schema with each reference replaced by what it refers to.

    Looking references up took four fifths of the time, and no definition refers to itself.
    """
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        referred = definitions[part["$ref"].removeprefix("#/$defs/")]
        part = {**referred, **{key: value for key, value in part.items() if key != "$ref"}}
    return {key: _inlined(value, definitions) for key, value in part.items() if key != "$defs"}


def _matches_whole(
    _: Any, pattern: str, instance: Any, __: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """As `pattern`, but `$` is the very end, and not also the place before a last line end."""
    if isinstance(instance, str) and not re.fullmatch(pattern.removesuffix("$"), instance):
        yield ValidationError("does not match")


def _names_once(
    _: Any, __: bool, instance: Any, ___: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """As `uniqueItems` for lists of names, in linear time whatever else the list holds."""
    items = instance if isinstance(instance, list) else ()
    names = [item for item in items if isinstance(item, str)]
    if len(set(names)) < len(names):
        yield ValidationError("is not unique")


def _within(read: Any, write: Any) -> Any:
    """A keyword that bounds what `read` makes of a value; what it cannot read is told elsewhere."""

    def check(
        _: Any, bounds: Mapping[str, float], instance: Any, __: Mapping[str, Any]
    ) -> Iterator[ValidationError]:
        if isinstance(instance, bool) or not isinstance(instance, str | int | float):
            return
        try:
            value = read(instance)
        except units.TooFine as fine:
            yield ValidationError(str(fine))
            return
        except ValueError:
            return
        if value < 0:
            return
        least, most = bounds.get("minimum", 0), bounds["maximum"]
        if not least <= value <= most:
            yield ValidationError(f"must be at least {write(least)} and at most {write(most)}")

    return check


def _told(errors: Iterable[ValidationError]) -> Iterator[tuple[KeyPath, str]]:
    found = [error for error in errors if error.instance is not UNREADABLE]
    # Of a value of the wrong type nothing else is worth saying.
    mistyped = {tuple(error.absolute_path) for error in found if error.validator == "type"}
    for error in found:
        if error.validator == "type" or tuple(error.absolute_path) not in mistyped:
            yield from _one(error)


def _one(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    path: KeyPath = tuple(error.absolute_path)
    kind, wanted, instance = error.validator, error.validator_value, error.instance
    if "propertyNames" in error.absolute_schema_path:
        yield (*path, str(instance)), f"must {error.schema['x-must']}"
    elif kind == "additionalProperties":
        known = error.schema["properties"]
        for key in instance:
            if key not in known:
                yield (*path, key), _unknown(key, known)
    elif kind == "required":
        for key in wanted:
            if key not in instance:
                about = error.schema["properties"][key]["description"]
                yield (*path, key), f"is required: {about}"
    elif kind == "anyOf":
        # One branch is null; what the other says of the value is the fault.
        yield from _told(e for e in error.context or () if e.validator_value != "null")
    else:
        yield path, _meaning(error)


def _meaning(error: ValidationError) -> str:
    kind, wanted, schema = error.validator, error.validator_value, error.schema
    if str(kind).startswith("x-"):
        return str(error.message)
    if kind == "type" and isinstance(wanted, str):
        return f"must be {_TYPES[wanted]}"
    if "x-must" in schema:
        return f"must {schema['x-must']}"
    if kind == "enum":
        return f"must be one of {', '.join(wanted)}"
    if kind in ("minimum", "maximum", "exclusiveMinimum"):
        return f"must be {_range(schema)}"
    if kind == "minItems":
        return "must not be empty"
    if kind == "maxItems":
        return f"must have at most {wanted} entries"
    if kind == "uniqueItems":
        return "must name each only once"
    raise AssertionError(f"the schema uses {kind}, which nothing here says in words")


def _range(schema: Mapping[str, Any]) -> str:
    parts = []
    if "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']}")
    if "minimum" in schema:
        parts.append(f"at least {schema['minimum']}")
    if "maximum" in schema:
        parts.append(f"at most {schema['maximum']}")
    return " and ".join(parts)


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key[:64], known, n=1)
    if close:
        return f"is not known; did you mean {close[0]}?"
    return f"is not known; known here are {', '.join(sorted(known))}"
