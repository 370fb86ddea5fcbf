"""What of a regular expression a grammar does not enforce, or makes broken JSON of. Pure.

xgrammar reads past lookarounds and past anchors in the midst, and its expression for a string of
a schema stands between the quotation marks as it is: characters that JSON must escape come out
unescaped. Whether an expression is valid at all, xgrammar says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PARTS = re.compile(
    r"""
    \[\^?(?:\\.|[^\]\\])*+\]?                                 # a class
    | \\u\{[0-9A-Fa-f]++\} | \\u[0-9A-Fa-f]{4} | \\x[0-9A-Fa-f]{2} | \\c[A-Za-z]
    | \\[pP]\{[^}]*+\}? | \\.
    | \(\?<?[=!] | \(\?<[^>]*+>? | \(\?: | \(\?[^):]*+[):]? | \(
    | \{[0-9]*+(?:,[0-9]*+)?\}
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
# Nothing of it goes back over what it has read: an expression may be long, and unclosed.
_MEMBERS = re.compile(
    r"\\u\{[0-9A-Fa-f]++\}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\c[A-Za-z]|\\[pP]\{[^}]*+\}?|\\.|.",
    re.DOTALL,
)
_NAMED = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "b": 8, "0": 0}
_WIDE = ("\\D", "\\W", "\\S", "\\s")
"""Each matches some character that JSON must escape."""
_NARROW = ("\\d", "\\w")
_ESCAPED = frozenset((*range(0x20), ord('"'), ord("\\")))
"""What may not stand in a JSON string as it is."""


def passed_over(expression: str) -> str:
    """The first part that xgrammar would read past; "" where there is none."""
    parts = _PARTS.findall(expression)
    depth = 0
    for at, part in enumerate(parts):
        if part in ("(?=", "(?!", "(?<=", "(?<!"):
            return "a lookaround"
        if part.startswith("(?") and not part.startswith(("(?:", "(?<")):
            return "a flag"
        before, after = parts[at - 1 : at], parts[at + 1 : at + 2]
        if part == "^" and not (at == 0 or (depth == 0 and before == ["|"])):
            return "an anchor in the midst"
        if part == "$" and not (not after or (depth == 0 and after == ["|"])):
            return "an anchor in the midst"
        depth += part.startswith("(") - (part == ")")
    return ""


def breaks_json(expression: str) -> str:
    """Why strings of this expression are no JSON strings, in any version of xgrammar; or ""."""
    for part in _PARTS.findall(expression):
        inner = part[1:-1] if part.startswith("[") and not part.startswith("[^") else part
        members = _MEMBERS.findall(inner)
        if len(members) == 1 and _code(members[0]) in _ESCAPED:
            return "a character that JSON escapes"
    return ""


def may_break_json(expression: str) -> str:
    """The same of versions that take a schema's expression just as it is, 0.2.1 among them.

    There classes may hold such a character, and of a choice only what is outermost is quoted.
    """
    depth = 0
    for part in _PARTS.findall(expression):
        if part == "|" and depth == 0:
            return "a choice that is not in parentheses"
        if part == "." or part in _WIDE or (part.startswith("[") and _class_is_wide(part)):
            return "a class with a character that JSON escapes"
        depth += part.startswith("(") - (part == ")")
    return breaks_json(expression)


def _class_is_wide(part: str) -> bool:
    if not part.startswith("[^"):
        return any(True for _ in _codes(part[1:].removesuffix("]")))
    left = set(_ESCAPED)
    for code in _codes(part[2:].removesuffix("]"), of_sets=False):
        left.discard(code)
        if not left:
            return False
    return True


def _codes(inner: str, *, of_sets: bool = True) -> Iterator[int]:
    """Those characters that JSON escapes which a class names, in ranges and by themselves.

    `of_sets` counts what \\D and its like stand for: where it is excluded, old versions err.
    """
    members = _MEMBERS.findall(inner)
    at = 0
    while at < len(members):
        first = members[at]
        if of_sets and first in _WIDE:
            yield from ((9, 10, 11, 12, 13) if first == "\\s" else _ESCAPED)
        low = high = _code(first)
        if at + 2 < len(members) and members[at + 1] == "-":
            high = _code(members[at + 2])
            at += 2
        at += 1
        if low is None or high is None:
            continue
        yield from range(low, min(high, 0x1F) + 1)
        yield from (code for code in (ord('"'), ord("\\")) if low <= code <= high)


def _code(member: str) -> int | None:
    """The character that one part stands for; None for those that stand for several or none."""
    if len(member) == 1:
        return None if member in ".^$|()*+?{}" else ord(member)
    if not member.startswith("\\") or member in (*_WIDE, *_NARROW):
        return None
    kind, rest = member[1], member[2:].strip("{}")
    if kind in "ux" and rest:
        return int(rest, 16)
    if kind == "c" and rest:
        return ord(rest) % 32
    return None if kind in "pPBkK123456789" else _NAMED.get(kind, ord(kind))
