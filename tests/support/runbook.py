"""Reads docs/runbook.md: its commands, what each is to print, and the command line beside it.

`…` in what is to be printed stands for anything: in a string for any text, as a value for any
value, as a list's last item or an object's key for any more, as a line for any lines. It runs
nothing.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ANY = "…"

_FENCE = re.compile(r"^( *)```([a-z]*)(?: ([a-z]+))?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
_CLI = re.compile(r"^ *CLI: (?:`(anabranch [^`]+)`)?", re.MULTILINE)
_PROGRAMS = "anabranch|curl|date|dmesg|docker|grep|kubectl|make|nc|nvidia-smi|openssl|python"
_INLINE = re.compile(rf"`((?:{_PROGRAMS}) [^`]+)`")
_ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)


@dataclass
class Command:
    """One block of commands. `where` is "", or what it needs: kubectl or compose."""

    section: str
    number: int
    script: str
    where: str = ""
    expected: str = ""
    form: str = ""
    command_lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Where it stands: the section's anchor and its number there."""
        return f"{self.section}-{self.number}"


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


def anchors(page: str) -> list[str]:
    """Those of all headings; what looks like one in a block is none."""
    return [anchor(text) for text in _HEADING.findall(_FENCE.sub("", page))]


def commands(page: str) -> list[Command]:
    """Every block of commands in order, with the output and the command lines after it.

    Raises ValueError for an output that follows no command.
    """
    found: list[Command] = []
    marks: list[tuple[int, str, Any]] = [
        *((m.start(), "block", m) for m in _FENCE.finditer(page)),
        *((m.start(), "heading", m) for m in _HEADING.finditer(page)),
        *((m.start(), "cli", m) for m in _CLI.finditer(page)),
    ]
    inside = [(m.start(), m.end()) for m in _FENCE.finditer(page)]
    section, numbers, open_for_output = "", dict[str, int](), False
    for start, kind, match in sorted(marks, key=lambda mark: mark[0]):
        if kind != "block" and any(a < start < b for a, b in inside):
            continue
        if kind == "heading":
            section, open_for_output = anchor(match[1]), False
        elif kind == "cli":
            if match[1]:
                found[-1].command_lines.append(match[1])
        elif match[2] == "sh":
            numbers[section] = numbers.get(section, 0) + 1
            script = textwrap.dedent(match[4])
            found.append(Command(section, numbers[section], script, match[3] or ""))
            open_for_output = True
        elif not open_for_output:
            raise ValueError(f"an output without a command under #{section}")
        else:
            found[-1].expected, found[-1].form = textwrap.dedent(match[4]), match[2]
            open_for_output = False
    return found


def inline(page: str) -> list[str]:
    """The commands within sentences and tables, each once; `CLI:` lines are `commands`'."""
    prose = re.sub(r"^ *CLI: `.*$", "", _FENCE.sub("", page), flags=re.MULTILINE)
    return sorted({found.replace("\\|", "|") for found in _INLINE.findall(prose)})


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of each row of the tables under a heading, without the tables' own headings."""
    wanted = anchor(heading)
    parts = re.split(r"^(#{1,4} .+)$", page, flags=re.MULTILINE)
    text = next(
        body
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
        if anchor(title.lstrip("# ")) == wanted
    )
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in _ROW.findall(text)]
    ruled = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
    return [row for i, row in enumerate(cells) if i not in ruled and i + 1 not in ruled]


def difference(command: Command, printed: str) -> str:
    """What is printed and not expected, or the reverse; empty when all is as it should be."""
    if not command.form:
        return ""
    if command.form == "json":
        try:
            expected, found = list(_values(command.expected)), list(_values(printed))
        except ValueError as wrong:
            return f"no JSON ({wrong}):\n{printed}"
        reasons = list(_differ(expected, found, ""))
        return "\n".join([*reasons, printed]) if reasons else ""
    pattern = "".join(_line(line) for line in command.expected.splitlines())
    text = "".join(f"{' '.join(line.split())}\n" for line in printed.strip().splitlines())
    return "" if re.fullmatch(pattern, text) else f"not the expected text:\n{printed}"


def _line(line: str) -> str:
    line = " ".join(line.split())
    if line == ANY:
        return r"(?:[^\n]*\n)*"
    return "[^\n]*".join(map(re.escape, line.split(ANY))) + r"\n"


def _values(text: str) -> Iterator[Any]:
    """The JSON values that follow each other in a text."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield value
        rest = rest[end:].lstrip()


def _differ(expected: Any, found: Any, path: str) -> Iterator[str]:
    if expected == ANY:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        named = expected.keys() - {ANY}
        if missing := named - found.keys():
            yield f"{path or 'the answer'} lacks {sorted(missing)}"
        if ANY not in expected and (more := found.keys() - named):
            yield f"{path or 'the answer'} also has {sorted(more)}"
        for key in sorted(named & found.keys()):
            yield from _differ(expected[key], found[key], f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        # A lone `…` is one item: an empty list would be no example of anything.
        open_end = len(expected) > 1 and expected[-1] == ANY
        expected = expected[:-1] if open_end else expected
        if len(found) < len(expected) or (len(found) > len(expected) and not open_end):
            yield f"{path} has {len(found)} items, not {len(expected)}"
        for number, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from _differ(one, other, f"{path}[{number}]")
    elif isinstance(expected, str) and isinstance(found, str):
        if not re.fullmatch(".*".join(map(re.escape, expected.split(ANY))), found, re.DOTALL):
            yield f"{path} is {found!r}, not {expected!r}"
    elif expected != found or type(expected) is not type(found):
        yield f"{path} is {found!r}, not {expected!r}"
