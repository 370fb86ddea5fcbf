"""Faults of a policy document: where each is, and what must be written there instead.

Values only. Nothing that a document holds is repeated, except the names of its keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""Keys and positions from the top of a document to a value; empty is the document itself."""

MOST = 200
"""Faults of one document that are told; an operator mends these before he reads further ones."""

_PLAIN = re.compile(r"[A-Za-z0-9_*-]{1,80}")
_LONGEST_KEY = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. `text` completes the sentence that begins with the path; `line` counts from 1,
    and is 0 where the fault has no place of its own."""

    path: KeyPath
    text: str
    line: int = 0

    @property
    def where(self) -> str:
        """The path as people write it: `models.qwen.objectives.ttft`, `aliases["a.b"][0]`."""
        return path_text(self.path)

    @property
    def said(self) -> str:
        """The text with the line."""
        return f"{self.text} (line {self.line})" if self.line else self.text

    def __str__(self) -> str:
        return f"{self.where or 'document'}: {self.said}"


class BadPolicy(Exception):
    """A document that is not applied; `problems` holds every fault in the order of the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = sorted(dict.fromkeys(problems), key=lambda p: (p.line, path_text(p.path)))
        more = len(found) - MOST
        if more > 0:
            found = [*found[:MOST], Problem((), f"has {more} more faults")]
        self.problems: tuple[Problem, ...] = tuple(found)
        super().__init__("\n".join(map(str, self.problems)))


def path_text(path: KeyPath) -> str:
    """A path as text, on one line whatever the keys hold."""
    parts = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN.fullmatch(step):
            parts.append(f".{step}" if parts else step)
        else:
            short = step if len(step) <= _LONGEST_KEY else step[: _LONGEST_KEY - 1] + "…"
            parts.append(f"[{json.dumps(short)}]")
    return "".join(parts)
