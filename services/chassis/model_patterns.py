"""Patterns of model names: a whole name, or a beginning followed by `*`. Pure.

Nothing richer, so that whether one pattern lies within another has one obvious answer: a
credential never gives more than its creator had.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ANY = "*"
MAX_PATTERNS = 32
MAX_PATTERN = 128

_PATTERN = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}\*?|\*")


def is_pattern(text: str) -> bool:
    """Whether it is one."""
    return len(text) <= MAX_PATTERN and _PATTERN.fullmatch(text) is not None


def covers(pattern: str, model: str) -> bool:
    """Whether the pattern lets this model, or everything within this pattern, be asked."""
    if pattern.endswith(ANY):
        return model.startswith(pattern[:-1])
    return model == pattern


def allows(patterns: Iterable[str], model: str) -> bool:
    """Whether one of the patterns covers the model. No pattern allows nothing."""
    return any(covers(pattern, model) for pattern in patterns)


def beyond(held: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """The wanted patterns that no held one covers."""
    return [pattern for pattern in wanted if not allows(held, pattern)]


def common(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """Patterns of what both let be asked, sorted."""
    found = {a for a in one if allows(other, a)} | {b for b in other if allows(one, b)}
    return tuple(sorted(found))
