"""Which keywords of a JSON schema a grammar does not enforce. Pure.

xgrammar reads past them without a word, and the answer then need not satisfy its schema. A
schema that has one is refused instead. Annotations, which constrain nothing, are no matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from services.local_engine.on_vllm.expressions import breaks_json, may_break_json, passed_over

_NOT_ENFORCED = frozenset(
    {
        *("not", "if", "then", "else"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
        *("contains", "minContains", "maxContains", "multipleOf"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
_BOUNDS: Mapping[str, tuple[str, ...]] = {
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("minItems", "maxItems"),
    "object": ("required", "minProperties", "maxProperties"),
}
"""Keywords that count only where the schema says the type, or as these tell it:"""
_TELLING: Mapping[str, tuple[str, ...]] = {
    "array": ("items", "prefixItems", "unevaluatedItems"),
    "object": ("properties", "additionalProperties", "patternProperties", "propertyNames"),
}
_ASSERTIONS = frozenset(
    keyword for several in (*_BOUNDS.values(), *_TELLING.values()) for keyword in several
)
_ALONE = ("$ref", "enum", "const", "anyOf", "oneOf", "allOf")
"""The first of these that a schema has decides alone what is allowed."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value maps names to schemas: the names are no keywords."""
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems")
_SINGLE_TOO = ("propertyNames", "additionalItems")


def unenforced(text: str) -> str:
    """The first such keyword of the schema, with what it applies to where that decides; or "".

    A text that is no JSON has none: whoever compiles it says what is wrong with it.
    """
    return next(_found(_parsed(text)), "")


def doubtful(text: str) -> str:
    """What only some versions of xgrammar enforce; or "". See expressions.may_break_json."""
    return next(_patterns(_parsed(text), may_break_json), "")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _patterns(schema: Any, wrong_with: Callable[[str], str]) -> Iterator[str]:
    """What is wrong with the expressions of a schema and of those within it."""
    if not isinstance(schema, Mapping):
        return
    for expression in _expressions(schema):
        wrong = wrong_with(expression)
        if wrong:
            yield f"{wrong} in a pattern"
    for inner in _inner(schema):
        yield from _patterns(inner, wrong_with)


def _expressions(schema: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(schema.get("pattern"), str):
        yield schema["pattern"]
    named = schema.get("patternProperties")
    if isinstance(named, Mapping):
        yield from named


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
    yield from _untyped(schema)
    yield from _beside(schema)
    bounded = "minLength" in schema or "maxLength" in schema
    if bounded and ("pattern" in schema or "format" in schema):
        yield "a length beside pattern or format"
    for expression in _expressions(schema):
        wrong = passed_over(expression) or breaks_json(expression)
        if wrong:
            yield f"{wrong} in a pattern"
    for inner in _inner(schema):
        yield from _found(inner)


def _untyped(schema: Mapping[str, Any]) -> Iterator[str]:
    if "type" in schema or any(keyword in schema for keyword in _ALONE):
        return
    for kind, keywords in _BOUNDS.items():
        if any(keyword in schema for keyword in _TELLING.get(kind, ())):
            continue
        for keyword in keywords:
            if keyword in schema:
                yield f"{keyword} without a type"


def _beside(schema: Mapping[str, Any]) -> Iterator[str]:
    """What stands beside a keyword that decides alone; a type may, that all of it is of."""
    decides = [keyword for keyword in _ALONE if keyword in schema]
    if not decides:
        return
    for keyword in schema:
        if keyword in _ASSERTIONS or keyword in decides[1:]:
            yield f"{keyword} beside {decides[0]}"
    if "type" in schema and not _same_type(schema, decides[0]):
        yield f"a type beside {decides[0]} that is not of it"


def _same_type(schema: Mapping[str, Any], decides: str) -> bool:
    wanted = schema["type"]
    types = set(wanted) if isinstance(wanted, list) else {wanted}
    if decides in ("enum", "const"):
        values = schema[decides] if decides == "enum" else [schema[decides]]
        return isinstance(values, list) and all(_types_of(value) & types for value in values)
    branches = schema[decides]
    return isinstance(branches, list) and all(
        isinstance(branch, Mapping) and branch.get("type") == wanted for branch in branches
    )


def _types_of(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
    return {"object"}


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
