"""What a grammar does not make of a regular expression is found; what passes makes JSON strings."""

from __future__ import annotations

import json
import random
import re

import pytest

from services.local_engine.on_vllm import form_compiler
from services.local_engine.on_vllm.expressions import breaks_json, may_break_json, passed_over
from tests.support.engines import MODEL


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("(?=a)a", "a lookaround"),
        ("(?!a)b", "a lookaround"),
        ("a(?<=a)b", "a lookaround"),
        ("(?i)a", "a flag"),
        ("(?i:a)", "a flag"),
        ("x^a$", "an anchor in the midst"),
        ("a$b", "an anchor in the midst"),
        ("x(^a|b)", "an anchor in the midst"),
        ("^a$|^b$", ""),
        (r"^\^a\$[$^]$", ""),
        ("(?:a)(?<name>b)", ""),
    ],
)
def test_what_would_be_read_past_is_named(expression: str, what: str):
    assert passed_over(expression) == what


@pytest.mark.parametrize(
    "expression",
    ['a"b', r"a\\b", r"\n", r"\x22", r"\u0022", r"\u{5c}", r"\cJ", '["]', r"\"", r"[\t]", "a\tb"],
)
def test_a_character_that_json_escapes_is_found(expression: str):
    assert breaks_json(expression) == "a character that JSON escapes"
    assert may_break_json(expression)


@pytest.mark.parametrize(
    "expression",
    ["a|b", ".", r"\S+", r"\s", "[^a]", "[ -~]", r"[\W]", '[a"]', r"[^\s]", r"[^\D]", r"[!-\]]"],
)
def test_what_only_newer_versions_escape_is_doubted(expression: str):
    assert breaks_json(expression) == ""
    assert may_break_json(expression)


SAFE = (r"^[a-z]{1,6}$", r"(yes|no)!?", r"\d+\.\w", r'[^"\\\x00-\x1f]{3}', r"[!#-\[\]-~]")


@pytest.mark.parametrize("expression", SAFE)
def test_what_no_version_breaks_is_not_doubted(expression: str):
    assert may_break_json(expression) == ""


@pytest.mark.parametrize("text", ["[", "(?", "(?<", r"\p{", r"\u{1", "{1", "[^", "[!-!"])
def test_an_unclosed_expression_is_read_once(text: str):
    """Reading it from each of its beginnings to its end takes hours; linear work a moment."""
    expression = text * 16_000
    for look in (passed_over, breaks_json, may_break_json):
        look(expression)
    for look in (passed_over, breaks_json, may_break_json):
        look(text + "1" * 64_000)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "expression", [*SAFE, ".{3}", r"\S{2}", "[^a]{2}", "[ -~]{4}", "a|b", r"[\w\s]{3}", "^a|b$"]
)
def test_strings_of_the_expressions_that_pass_are_json_and_match(expression: str):
    """Drawn from the grammar, as a model may draw them."""
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=49152)
    compiler = xgrammar.GrammarCompiler(info, max_threads=2)
    if may_break_json(expression) and not form_compiler._takes(compiler, "a|b", '"a"'):
        pytest.skip("this version takes expressions just as they are, and these are refused")
    schema = json.dumps({"type": "string", "pattern": expression})
    compiled = compiler.compile_json_schema(schema)
    draw, mask = random.Random(1), xgrammar.allocate_token_bitmask(1, 49152)
    for _ in range(30):
        matcher, tokens = xgrammar.GrammarMatcher(compiled), []
        while len(tokens) < 40:
            matcher.fill_next_token_bitmask(mask)
            allowed = [
                word * 32 + bit
                for word, bits in enumerate(mask[0].tolist())
                for bit in range(32)
                if bits >> bit & 1
            ]
            token = draw.choice(allowed)
            assert matcher.accept_token(token)
            if matcher.is_terminated():
                break
            tokens.append(token)
        if not matcher.is_terminated():
            continue
        text = json.loads(tokenizer.decode(tokens))
        assert re.search(expression, text)
