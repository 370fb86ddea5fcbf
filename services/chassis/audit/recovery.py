"""What a process that goes on with a trail's files must not sign over in silence.

Looks only at what lies at and beyond the last head; `audit verify` looks at all. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.chassis.audit.entry import ChainedEntry, parse_line
from services.chassis.audit.head import Head, is_genuine
from services.chassis.audit.segments import lines_of, segments_of
from services.chassis.audit.verify import PRUNED, SKIPPED


@dataclass(frozen=True, slots=True)
class Doubts:
    """`first_unsigned` is the first entry beyond the last head that states a gap, 0 for none;
    `head_differs`: the last head was signed with another hash than its entry has."""

    first_unsigned: int = 0
    head_differs: bool = False

    def __bool__(self) -> bool:
        return bool(self.first_unsigned) or self.head_differs


def doubts_about(directory: Path, trail: str, head: Head | None, public_key: bytes) -> Doubts:
    """Looks at a trail's files as they were found; `head` is the last one beside them, and counts
    only when it was signed with `public_key`. Blocks. Raises OSError.

    After a change of the key nothing counts as signed, until the next head.
    """
    signed = 0
    if head is not None and head.public_key == public_key and head.trail == trail:
        signed = head.sequence if is_genuine(head) else 0
    differs = False
    for chained in _entries_from(directory, trail, signed):
        sequence = chained.entry.sequence
        if head is not None and sequence == signed:
            differs = differs or chained.hash != head.hash
        if sequence > signed and chained.entry.act.action in (PRUNED, SKIPPED):
            return Doubts(sequence, differs)
    return Doubts(0, differs)


def _entries_from(directory: Path, trail: str, sequence: int) -> Iterator[ChainedEntry]:
    """Those of the segment that holds this one, and of later ones. What is no entry is passed
    over."""
    segments = segments_of(directory, trail)
    begun = [place for place, segment in enumerate(segments) if segment.first <= sequence]
    for segment in segments[begun[-1] if begun else 0 :]:
        for line in lines_of(segment.path):
            try:
                yield parse_line(line)
            except ValueError:
                continue
