"""Reads audit trails from files for the command line: verifies them, and finds entries.

Writes nothing, and may look at a trail while a process writes it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.audit.entry import ChainedEntry, parse_line
from services.chassis.audit.head import Head
from services.chassis.audit.segments import (
    HEADS,
    heads_path,
    lines_of,
    segment_at,
    segments_of,
    trails_in,
)
from services.chassis.audit.verify import Kind, Report, verify

_PASSING = {Kind.UNREADABLE, Kind.TRUNCATED, Kind.MISSING, Kind.START_MISSING}
_LOOKS = 3
_AGAIN_S = 0.3


def verify_path(
    path: Path,
    *,
    trail: str | None = None,
    public_keys: Collection[bytes] = (),
    kept: Sequence[Head] = (),
) -> list[Report]:
    """Looks at every trail of a directory, or at `trail` alone; of a file, at the trail that it
    holds whole. Heads that are kept elsewhere belong to the trails that they name.

    Raises OSError.
    """
    if path.is_dir():
        names = [trail] if trail else sorted({*trails_in(path), *(head.trail for head in kept)})
    else:
        names = [trail or ""]
    return [_settled(path, name, public_keys, kept) for name in names]


def _settled(
    path: Path, trail: str, public_keys: Collection[bytes], kept: Sequence[Head]
) -> Report:
    """What is being written or removed at the moment is looked at again."""
    for look in itertools.count(1):
        # The heads as they are now, before the entries: none is ahead of them.
        try:
            heads = _snapshot(path, trail)
            own = [head for head in kept if not trail or head.trail == trail]
            found = verify(
                _lines(path, trail), heads, trail=trail, public_keys=public_keys, kept=own
            )
        except FileNotFoundError:
            if look == _LOOKS or not path.exists():
                raise
        else:
            kinds = {finding.kind for finding in found.findings}
            if look == _LOOKS or not kinds or not kinds <= _PASSING:
                return found
        time.sleep(_AGAIN_S)
    raise AssertionError("not reached")


def _snapshot(path: Path, trail: str) -> Iterator[bytes]:
    if path.is_dir():
        beside = heads_path(path, trail)
    elif (segment := segment_at(path)) is not None:
        beside = heads_path(path.parent, segment.trail)
    else:
        beside = path.with_name(path.name.removesuffix(".jsonl") + HEADS)
    if not beside.exists():
        return iter(())
    lines = lines_of(beside)
    first = next(lines, None)  # opens it, and so fixes how far it is read
    return iter(()) if first is None else itertools.chain([first], lines)


def _lines(path: Path, trail: str) -> Iterator[bytes]:
    if not path.is_dir():
        yield from lines_of(path)
        return
    for segment in segments_of(path, trail):
        yield from lines_of(segment.path)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries; times in seconds since the epoch. An `action` ending in a dot stands for all
    that begin so."""

    since: float | None = None
    until: float | None = None
    client: str = ""
    action: str = ""
    tenant: str = ""
    trail: str = ""

    def __call__(self, chained: ChainedEntry) -> bool:
        entry, act = chained.entry, chained.entry.act
        return (
            (self.since is None or entry.time >= self.since)
            and (self.until is None or entry.time <= self.until)
            and self.client in ("", act.client_id)
            and self.tenant in ("", act.tenant)
            and (
                self.action in ("", act.action)
                or (self.action.endswith(".") and act.action.startswith(self.action))
            )
        )


def entries_in(directory: Path, wanted: Wanted) -> Iterator[ChainedEntry]:
    """The wanted entries of all trails of a directory, by time. What is no entry is passed over:
    `verify_path` is for that. Raises OSError."""
    names = [wanted.trail] if wanted.trail else trails_in(directory)
    every = [_entries_of(directory, name, wanted) for name in names]
    return filter(wanted, heapq.merge(*every, key=lambda chained: chained.entry.time_us))


def _entries_of(directory: Path, trail: str, wanted: Wanted) -> Iterator[ChainedEntry]:
    for segment in segments_of(directory, trail):
        if wanted.since is not None and segment.path.stat().st_mtime < wanted.since:
            continue  # nothing in it is younger than what was written last
        for line in lines_of(segment.path):
            if (entry := _parsed(line)) is not None:
                yield entry


def follow(directory: Path, wanted: Wanted, pause: Callable[[], None]) -> Iterator[ChainedEntry]:
    """The wanted entries that are written from now on; `pause` is called between looks."""
    seen: dict[Path, int] = {}
    trail = wanted.trail or None
    for segment in segments_of(directory, trail):
        seen[segment.path] = segment.path.stat().st_size
    while True:
        for segment in segments_of(directory, trail):
            begin = seen.get(segment.path, 0)
            with segment.path.open("rb") as file:
                file.seek(begin)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    begin += len(line)
                    entry = _parsed(line)
                    if entry is not None and wanted(entry):
                        yield entry
            seen[segment.path] = begin
        pause()


def _parsed(line: bytes) -> ChainedEntry | None:
    try:
        return parse_line(line)
    except ValueError:
        return None
