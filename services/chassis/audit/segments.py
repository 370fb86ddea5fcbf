"""The files of audit trails in a directory: their names, and reading them.

A trail `T` is kept in segments `T-<first sequence, 20 digits>.jsonl`, its signed heads in
`T.heads.jsonl`; a process that writes it holds the lock of `T.lock`. Writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.chassis.audit.entry import LONGEST_LINE, ChainedEntry, parse_line

HEADS = ".heads.jsonl"
_SEGMENT = re.compile(r"(?P<trail>[A-Za-z0-9._-]+)-(?P<first>\d{20})\.jsonl")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of a trail, by its name."""

    trail: str
    first: int
    path: Path


def trail_name(text: str) -> str:
    """A text as the name of a trail, which is part of file names."""
    return _NOT_IN_NAMES.sub("-", text).strip(".-")[:100] or "trail"


def segment_path(directory: Path, trail: str, first: int) -> Path:
    """Where the segment that begins with this entry is."""
    return directory / f"{trail}-{first:020}.jsonl"


def heads_path(directory: Path, trail: str) -> Path:
    """Where the signed heads of a trail are."""
    return directory / f"{trail}{HEADS}"


def segments_of(directory: Path, trail: str | None = None) -> list[Segment]:
    """The segments in a directory, trail by trail, the oldest first. Raises OSError."""
    found = [s for path in directory.iterdir() if (s := segment_at(path)) is not None]
    return sorted(s for s in found if trail in (None, s.trail))


def segment_at(path: Path) -> Segment | None:
    """The segment that a file's name says it is, if it says so."""
    match = _SEGMENT.fullmatch(path.name)
    return Segment(match["trail"], int(match["first"]), path) if match else None


def trails_in(directory: Path) -> list[str]:
    """The names of the trails of which anything is there. Raises OSError."""
    names = {segment.trail for segment in segments_of(directory)}
    names |= {path.name.removesuffix(HEADS) for path in directory.glob(f"*{HEADS}")}
    return sorted(names)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file as far as it reaches now, ends included; one that is far too long comes
    in pieces. Raises OSError."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0 and (line := file.readline(min(left, LONGEST_LINE + 1))):
            left -= len(line)
            yield line


class CorruptError(Exception):
    """A file of a trail does not end as a trail's file does, and not as after a crash either."""


def last_entry(path: Path) -> tuple[ChainedEntry | None, int]:
    """The last whole entry of a segment, None of an empty one, and the bytes up to its end: what
    lies beyond was being written when the process ended.

    Raises CorruptError when the last whole line is no entry, and OSError.
    """
    line, end = last_line(path)
    if not line:
        return None, end
    try:
        return parse_line(line), end
    except ValueError as exc:
        raise CorruptError(
            f"{path} does not end with an entry of an audit trail: {exc}. `anabranch audit verify` "
            "says more; move the trail's files away to begin another"
        ) from exc


def last_line(path: Path) -> tuple[bytes, int]:
    """The last line that has an end, empty when there is none, and the bytes up to its end."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # What was cut by a crash may be a whole batch.
        begin = size
        tail = b""
        while begin > 0:
            step = min(begin, LONGEST_LINE)
            begin -= step
            file.seek(begin)
            tail = file.read(step) + tail
            end = tail.rfind(b"\n") + 1
            start = tail.rfind(b"\n", 0, end - 1) + 1 if end else 0
            if end and (start or not begin):
                return tail[start:end], begin + end
            if end and end > 2 * LONGEST_LINE:
                break  # no line is so long: it is looked at, and refused
        end = tail.rfind(b"\n") + 1
        return (tail[:end], begin + end) if end else (b"", 0)
