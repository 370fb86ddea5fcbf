"""JSON schemas drawn at random, whose answers are short: for models that are to fill them in."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ("name", "age", "not", "city", "tags", "a b", "größe", "x-1", "id", "ok")
_WORDS = ("red", "green", "blue", 'a "quoted" word', "日本", "tab\there", "")


def random_schema(seed: int) -> dict[str, Any]:
    """An object's schema; the same for the same seed."""
    return _object(random.Random(seed), depth=3)


def _any(draw: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _number, _boolean, _enum, _const, _format]
    if depth > 0:
        makers += [_object, _array, _any_of, _tuple]
    return draw.choice(makers)(draw, depth - 1)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(_NAMES, draw.randint(1, 3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(draw, depth) for name in names},
        "required": [name for name in names if draw.random() < 0.6],
    }
    if draw.random() < 0.7:
        schema["additionalProperties"] = False
    if draw.random() < 0.3:
        schema["description"] = "An object, drawn at random."
    return schema


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 2)
    items = _any(draw, depth)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}


def _tuple(draw: random.Random, depth: int) -> dict[str, Any]:
    items = [_any(draw, depth) for _ in range(draw.randint(1, 2))]
    return {
        "type": "array",
        "prefixItems": items,
        "items": False,
        "minItems": len(items),
        "maxItems": len(items),
    }


def _any_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(draw, depth) for _ in range(draw.randint(2, 3))]}


def _string(draw: random.Random, _: int) -> dict[str, Any]:
    if draw.random() < 0.5:
        pattern = draw.choice(("^[a-z]{1,6}$", "^[A-Z][0-9]{2}$", "^(yes|no)!?$"))
        return {"type": "string", "pattern": pattern}
    least = draw.randint(0, 2)
    return {"type": "string", "minLength": least, "maxLength": least + 3}


def _format(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": "string", "format": draw.choice(("date", "ipv4", "uuid"))}


def _integer(draw: random.Random, _: int) -> dict[str, Any]:
    low = draw.randint(-200, 200)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 500)}


def _number(draw: random.Random, _: int) -> dict[str, Any]:
    low = draw.randint(-50, 50)
    return {"type": "number", "minimum": low, "maximum": low + draw.randint(1, 50)}


def _boolean(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": draw.choice(("boolean", ["boolean", "null"]))}


def _enum(draw: random.Random, _: int) -> dict[str, Any]:
    return {"enum": draw.sample((*_WORDS, 1, 2.5, None, True), draw.randint(1, 4))}


def _const(draw: random.Random, _: int) -> dict[str, Any]:
    return {"const": draw.choice((*_WORDS, 0, None))}
