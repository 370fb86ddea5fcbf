"""Keywords of a schema that no grammar enforces are found; names that look like them are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.local_engine.on_vllm.schema_keywords import doubtful, unenforced


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "number", "multipleOf": 3}, "multipleOf"),
        ({"properties": {"a": {"type": "array", "contains": {}}}}, "contains"),
        ({"items": {"uniqueItems": True}}, "uniqueItems"),
        ({"items": [{"if": {}}]}, "if"),
        ({"$defs": {"x": {"dependentRequired": {}}}}, "dependentRequired"),
        ({"anyOf": [{}, {"prefixItems": [{"then": {}}]}]}, "then"),
        ({"allOf": [{}, {}]}, "allOf of several schemas"),
        ({"additionalProperties": {"type": "integer", "multipleOf": 2}}, "multipleOf"),
        ({"type": "string", "pattern": "a+", "maxLength": 3}, "a length beside pattern or format"),
        ({"pattern": "a+"}, "pattern without a type"),
        ({"type": "string", "pattern": "(?=a)."}, "a lookaround in a pattern"),
        (
            {"items": {"type": "string", "pattern": 'a"'}},
            "a character that JSON escapes in a pattern",
        ),
        (
            {"type": "object", "patternProperties": {"x^a": {}}},
            "an anchor in the midst in a pattern",
        ),
        ({"items": {"minimum": 3}}, "minimum without a type"),
        ({"required": ["a"]}, "required without a type"),
        ({"minItems": 1}, "minItems without a type"),
        ({"enum": ["a"], "minLength": 2}, "minLength beside enum"),
        ({"type": "string", "const": 5}, "a type beside const that is not of it"),
        ({"$ref": "#/$defs/x", "minimum": 5}, "minimum beside $ref"),
        ({"anyOf": [{}], "properties": {}}, "properties beside anyOf"),
        ({"anyOf": [{}], "oneOf": [{}]}, "oneOf beside anyOf"),
        (
            {"type": "integer", "anyOf": [{"type": "string"}]},
            "a type beside anyOf that is not of it",
        ),
        ({"type": "string", "$ref": "#/$defs/x"}, "a type beside $ref that is not of it"),
    ],
)
def test_a_keyword_that_would_be_ignored_is_named(schema: dict[str, Any], keyword: str):
    assert unenforced(json.dumps(schema)) == keyword


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"not": {"type": "string"}, "if": {}, "contains": {}}},
        {"title": "not", "description": "if", "default": {"not": 1}, "examples": [{"if": 1}]},
        {"enum": [{"multipleOf": 1}]},
        {"const": {"not": 2}},
        {"uniqueItems": False, "allOf": [{}]},
        {"$defs": {"then": {"type": "integer"}}, "$ref": "#/$defs/then"},
        {"type": "string", "maxLength": 4},
        {"type": ["string", "integer"], "minLength": 2, "minimum": 5},
        {"type": "string", "enum": ["a", "b"]},
        {"type": ["number", "null"], "enum": [1, 2.5, None]},
        {"type": "object", "oneOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]},
        {"items": {"type": "integer"}, "minItems": 1},
        {"properties": {"a": {}}, "required": ["a"]},
        {"allOf": [{"$ref": "#/$defs/x"}], "description": "x", "default": 1},
        {"additionalProperties": False},
    ],
)
def test_names_values_and_annotations_are_no_keywords(schema: dict[str, Any]):
    assert unenforced(json.dumps(schema)) == ""


def test_what_is_no_json_is_left_to_the_compiler():
    assert unenforced("{") == ""


def test_what_only_some_versions_of_xgrammar_enforce_is_told_apart():
    schema = {"properties": {"x": {"type": "string", "pattern": "yes|no"}}}
    assert unenforced(json.dumps(schema)) == ""
    assert doubtful(json.dumps(schema)) == "a choice that is not in parentheses in a pattern"
    assert doubtful('{"type": "string", "pattern": "(yes|no)"}') == ""
