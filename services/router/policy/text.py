"""Reads YAML text into plain values with the line of each, and refuses what could do harm.

The values are those of JSON: a policy needs no more. `yes` and `12:30` are text, and keys are text
whatever they look like. Refused are anchors, aliases and tags, keys that come twice, deep nesting
and long documents. What the values mean is not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from services.router.policy.problems import BadPolicy, KeyPath, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 10
MAX_VALUES = 50_000
_LONGEST_NUMBER = 32  # characters

# The scanner in C is ten times faster; wheels of every common platform have it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = dict.fromkeys(("true", "True", "TRUE"), True)
_BOOLEANS |= dict.fromkeys(("false", "False", "FALSE"), False)
_WHOLE = re.compile(r"[-+]?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Unreadable:
    """Stands where a value could not be read; its fault is among the problems."""


UNREADABLE = Unreadable()


@dataclass(slots=True)
class Tree:
    """A document: its values, the line of each path, and the faults found so far."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of the nearest value around it; 0 for the whole document."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines[path] if path else 0


def parse(content: str | bytes) -> Tree:
    """The document in `content`. What is wrong with single values is in its `problems`.

    Raises BadPolicy when the text as a whole cannot be read.
    """
    text = _decoded(content)
    try:
        tree = _Builder(text).build()
    except yaml.YAMLError as malformed:
        raise _unparsable(malformed) from None
    if tree is None:
        raise _refused("is empty; a policy begins with `version: 1`")
    return tree


def plain(text: str) -> Any:
    """What unquoted text stands for: None, a boolean, a number or itself.

    Raises ValueError for a number that is not finite or very long.
    """
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("must be a finite number")
    if not _NUMBER.fullmatch(text):
        return text
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"must be a number of at most {_LONGEST_NUMBER} characters")
    if _WHOLE.fullmatch(text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _decoded(content: str | bytes) -> str:
    try:
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        if len(raw) > MAX_BYTES:
            raise _refused(f"is longer than {MAX_BYTES // 1024} KiB; make it shorter")
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeError:
        raise _refused("is not UTF-8; save it as that") from None


def _unparsable(malformed: yaml.YAMLError) -> BadPolicy:
    mark = getattr(malformed, "problem_mark", None)
    why = str(getattr(malformed, "problem", None) or "it holds a character that YAML forbids")
    text = f"is not valid YAML: {why}"
    if mark is None:
        return _refused(text)
    text += f", column {mark.column + 1}"
    if "alphabetic or numeric" in why:
        text += '; a name such as * or one that begins with & must be quoted: "*"'
    return _refused(text, mark.line + 1)


def _refused(text: str, line: int = 0) -> BadPolicy:
    return BadPolicy([Problem((), text, line)])


class _Builder:
    """Turns the parser's events into a tree, without recursion."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._tree = Tree()
        self._count = 0
        self._documents = 0
        self._open: list[_Open] = []

    def build(self) -> Tree | None:
        """The tree; None when the text holds nothing."""
        for event in self._events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise self._fatal("is followed by a second document; keep one", line)
            elif isinstance(event, yaml.NodeEvent):
                self._count += 1
                if self._count > MAX_VALUES:
                    raise self._fatal(f"holds more than {MAX_VALUES} values; shorten it", line)
                around = self._open[-1] if self._open else None
                if around is not None and around.wants_key:
                    self._key(around, event, line)
                else:
                    self._node(around, event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._open.pop()
        return self._tree if self._count else None

    def _key(self, around: _Open, event: Any, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._fatal("has a key that is no plain name", line, around.path)
        around.key, around.key_line = event.value, line
        path = (*around.path, event.value)
        self._tree.lines.setdefault(path, line)
        self._refuse_marks(event, path, line)

    def _node(self, around: _Open | None, event: Any, line: int) -> None:
        path: KeyPath = ()
        if around is not None:
            path = (*around.path, around.next_step)
        self._tree.lines.setdefault(path, line)
        value = self._value(event, path, line)
        if around is None:
            self._tree.value = value
        elif not around.add(value):
            self._problem(path, "is there twice; keep one", around.key_line)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) == MAX_DEPTH:
                raise self._fatal(f"is nested more than {MAX_DEPTH} deep; no key needs that", line)
            self._open.append(_Open(value, path))

    def _value(self, event: Any, path: KeyPath, line: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            self._problem(path, "is an alias (*); write the value itself", line)
            return UNREADABLE
        self._refuse_marks(event, path, line)
        if isinstance(event, yaml.MappingStartEvent):
            return {}
        if isinstance(event, yaml.SequenceStartEvent):
            return []
        if event.style:  # quoted, or a block of text
            return event.value
        try:
            return plain(event.value)
        except ValueError as refused:
            self._problem(path, str(refused), line)
            return UNREADABLE

    def _refuse_marks(self, event: Any, path: KeyPath, line: int) -> None:
        if event.anchor is not None:
            self._problem(path, "has an anchor (&); leave it out", line)
        if event.tag is not None:
            self._problem(path, "has a tag (!); leave it out", line)

    def _problem(self, path: KeyPath, text: str, line: int) -> None:
        self._tree.problems.append(Problem(path, text, line))

    def _fatal(self, text: str, line: int, path: KeyPath = ()) -> BadPolicy:
        return BadPolicy([*self._tree.problems, Problem(path, text, line)])


@dataclass(slots=True)
class _Open:
    """A collection that is being filled; `key` waits for its value in a mapping."""

    value: Any
    path: KeyPath
    key: str | None = None
    key_line: int = 0

    @property
    def wants_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None

    @property
    def next_step(self) -> str | int:
        return len(self.value) if self.key is None else self.key

    def add(self, value: Any) -> bool:
        """Puts a value in its place; false when another one is there already."""
        key, self.key = self.key, None
        if key is None:
            self.value.append(value)
        elif key in self.value:
            return False
        else:
            self.value[key] = value
        return True
