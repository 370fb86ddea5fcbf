"""Which keywords of a JSON schema a grammar does not enforce. Pure.

xgrammar reads past them without a word, and the answer then need not satisfy its schema. A
schema that has one is refused instead. Annotations, which constrain nothing, are no matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NOT_ENFORCED = frozenset(
    {
        *("not", "if", "then", "else"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
        *("contains", "minContains", "maxContains", "multipleOf"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value maps names to schemas: the names are no keywords."""
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems")
_SINGLE_TOO = ("propertyNames", "additionalItems")


def unenforced(text: str) -> str:
    """The first such keyword of the schema, with what it applies to where that decides; or "".

    A text that is no JSON has none: whoever compiles it says what is wrong with it.
    """
    try:
        schema = json.loads(text)
    except ValueError:
        return ""
    return next(_found(schema), "")


def _found(schema: Any) -> Iterator[str]:
    """Without recursion into a stack that a caller could exhaust: nesting is bounded before."""
    if not isinstance(schema, Mapping):
        return
    for keyword in schema:
        if keyword in _NOT_ENFORCED:
            yield keyword
    if schema.get("uniqueItems") is True:
        yield "uniqueItems"
    several = schema.get("allOf")
    if isinstance(several, list) and len(several) > 1:
        yield "allOf of several schemas"
    bounded = "minLength" in schema or "maxLength" in schema
    if bounded and ("pattern" in schema or "format" in schema):
        yield "a length beside pattern or format"
    for inner in _inner(schema):
        yield from _found(inner)


def _inner(schema: Mapping[str, Any]) -> Iterator[Any]:
    for keyword in _MAPS:
        named = schema.get(keyword)
        if isinstance(named, Mapping):
            yield from named.values()
    for keyword in _LISTS:
        several = schema.get(keyword)
        if isinstance(several, list):
            yield from several
    for keyword in _SINGLE + _SINGLE_TOO:
        one = schema.get(keyword)
        if isinstance(one, list):  # items, as it was before draft 2020-12
            yield from one
        else:
            yield one
