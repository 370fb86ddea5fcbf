r"""Finds what must be replaced in a text of a request, plain or JSON, and replaces it.

JSON stays valid and is otherwise left as it was, byte for byte: only the content of strings
changes, and numbers that become strings. The values of strings are taken as JSON means them, so
that one written with escapes is the same value as elsewhere. What stands for a value is decided
elsewhere (placeholders.py).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import Span
from services.cloud_proxy.masking.detection import find


class Form(Enum):
    """How a text is to be read."""

    TEXT = "text"
    JSON = "json"
    """JSON; plain text where it is none."""
    SCHEMA = "schema"
    """JSON in which a number bounds something, so that only strings are replaced."""


class Finding(NamedTuple):
    """An entity and its place in a text as written. `quoted`: what replaces it needs quotes."""

    start: int
    end: int
    kind: pb.PiiKind
    value: str
    quoted: bool = False


# A string's content, or a number. Unrolled, so that there is one way to read it.
_TOKEN = re.compile(
    r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"|(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)', re.DOTALL
)
# What is written for one character: a pair of surrogates, or a single escape.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\."
)
# Escapes behind which a character of an entity may hide.
_HIDING = ("\\u", "\\/")


def find_in(text: str, form: Form, kinds: Collection[pb.PiiKind]) -> list[Finding]:
    """What must be replaced, from left to right."""
    spans = find(text, kinds)
    if form is not Form.TEXT and (spans or any(escape in text for escape in _HIDING)):
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
        else:
            return list(_in_json(text, spans, kinds, numbers=form is Form.JSON))
    return [Finding(s.start, s.end, s.kind, text[s.start : s.end]) for s in spans]


def replaced(text: str, findings: Sequence[Finding], by: Callable[[Finding], str]) -> str:
    """The text with what `by` says in place of each finding."""
    pieces: list[str] = []
    after = 0
    for found in findings:
        stands = by(found)
        pieces += text[after : found.start], f'"{stands}"' if found.quoted else stands
        after = found.end
    pieces.append(text[after:])
    return "".join(pieces)


def _in_json(
    text: str, spans: list[Span], kinds: Collection[pb.PiiKind], *, numbers: bool
) -> Iterator[Finding]:
    """`spans` are those of the text as it is written, where a key may name what its value is."""
    ahead = iter(spans)
    span = next(ahead, None)
    for token in _TOKEN.finditer(text):
        start, end = token.span(token.lastindex or 0)
        while span is not None and span.end <= start:
            span = next(ahead, None)
        within = []
        crosses = False
        while span is not None and span.start < end:
            if start <= span.start and span.end <= end:
                within.append(span)
                span = next(ahead, None)
            else:
                crosses = True
                break
        content = text[start:end]
        if token.lastindex == 2:
            if numbers and any((s.start, s.end) == (start, end) for s in within):
                yield Finding(start, end, within[0].kind, content, quoted=True)
        elif "\\" in content:
            if within or crosses or any(escape in content for escape in _HIDING):
                yield from _in_escaped(content, start, kinds)
        elif crosses:
            for s in find(content, kinds):
                yield Finding(start + s.start, start + s.end, s.kind, content[s.start : s.end])
        else:
            for s in within:
                yield Finding(s.start, s.end, s.kind, text[s.start : s.end])


def _in_escaped(content: str, offset: int, kinds: Collection[pb.PiiKind]) -> Iterator[Finding]:
    """Within a string that is written with escapes."""
    meant: str = orjson.loads(f'"{content}"')
    spans = find(meant, kinds)
    if not spans:
        return
    # Where escapes lie in what is meant, and how much longer the text as written is after each.
    places: list[int] = []
    longer = [0]
    for escape in _ESCAPE.finditer(content):
        places.append(escape.start() - longer[-1])
        longer.append(longer[-1] + len(escape[0]) - 1)
    for start, end, kind in spans:
        written = [offset + at + longer[bisect_left(places, at)] for at in (start, end)]
        yield Finding(written[0], written[1], kind, meant[start:end])
