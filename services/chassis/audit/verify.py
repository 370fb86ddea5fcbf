"""Checks an audit trail: finds what was altered, removed, added, moved or cut off.

Pure, over an iterator of lines and one of signed heads: where they are kept is not known here, and
of a trail of any length only a little is held. What was cut off together with every head beyond
the cut is found only with a head that is kept elsewhere (`kept`).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from services.chassis.audit.entry import GENESIS, ChainedEntry, parse_line
from services.chassis.audit.head import Head, is_genuine, parse_head

PRUNED = "trail.pruned"
"""The action of the entry that says up to where a trail was removed because of its age."""

SKIPPED = "trail.skipped"
"""The action of the entry that says what one copy of a trail lacks, because it could not be
written for too long."""

RECOVERED = "trail.recovered"
"""The action of the entry that says how a process found the trail after another; one that did not
succeed disowns what no head vouched for at that time."""

_MOST = 1000


class Kind(StrEnum):
    """What is wrong."""

    ALTERED = "altered"
    UNREADABLE = "unreadable"
    MISSING = "missing"
    START_MISSING = "start missing"
    REPEATED = "repeated"
    REORDERED = "reordered"
    FOREIGN = "foreign"
    TRUNCATED = "truncated"
    NOT_SIGNED = "not signed"
    HEAD_FORGED = "head forged"
    HEAD_DIFFERS = "head differs"
    HEAD_MOVED = "head moved"
    HEAD_UNREADABLE = "head unreadable"
    UNKNOWN_KEY = "unknown key"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, at an entry's sequence number, or None where there is none."""

    kind: Kind
    sequence: int | None
    text: str


@dataclass(slots=True)
class Report:
    """What a look at a trail showed. `signed` is the last entry that a genuine head vouches for;
    what comes after may be lost unnoticed. `absent` are ranges that the trail itself accounts for:
    removed because of their age, or missing in this copy. `key` signed the heads."""

    trail: str = ""
    entries: int = 0
    first: int = 0
    last: int = 0
    signed: int = 0
    key: bytes = b""
    absent: list[tuple[int, int]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    further: int = 0
    """Findings beyond those listed."""

    @property
    def intact(self) -> bool:
        return not self.findings

    def add(self, kind: Kind, sequence: int | None, text: str) -> None:
        if len(self.findings) < _MOST:
            self.findings.append(Finding(kind, sequence, text))
        else:
            self.further += 1


def verify(
    lines: Iterable[bytes],
    heads: Iterable[bytes],
    *,
    trail: str = "",
    public_keys: Collection[bytes] = (),
    kept: Iterable[Head] = (),
) -> Report:
    """Looks at a whole trail.

    `lines` are its entries and `heads` its signed heads, both in order. `trail`: the name that it
    must have; by default the one it begins with. `public_keys`: whose heads are believed; by
    default whoever signed the first one, which proves nothing about who that was. `kept` are heads
    from elsewhere, in any order.
    """
    return _Check(Report(trail), frozenset(public_keys)).run(lines, heads, kept)


@dataclass(slots=True)
class _Gap:
    """Entries that were not there, and the one that came after them."""

    first: int
    last: int
    after: ChainedEntry


class _Check:
    def __init__(self, report: Report, keys: frozenset[bytes]) -> None:
        self._report = report
        self._keys = keys
        self._gaps: list[_Gap] = []
        # Absences: first, last, hash of the last. Anybody can compute the hash of an entry that
        # states one, so it is believed once a head vouches for it: one of an entry that follows it
        # without a gap, behind which the entries before could be anything.
        self._stated: list[tuple[int, int, bytes]] = []
        self._unsigned: list[tuple[int, int, bytes]] = []
        # The hash that the last entry states and the one that it should have; the next may follow
        # either, so that one altered entry is one finding.
        self._previous: frozenset[bytes] = frozenset({GENESIS})
        self._heads: Iterator[Head] = iter(())
        self._head: Head | None = None
        self._early: list[Head] = []
        self._any_head = False

    def run(self, lines: Iterable[bytes], heads: Iterable[bytes], kept: Iterable[Head]) -> Report:
        own = self._good_heads(self._read(heads), ordered=True)
        elsewhere = self._good_heads(sorted(kept, key=_by_sequence), ordered=False)
        self._heads = heapq.merge(elsewhere, own, key=_by_sequence)
        self._head = next(self._heads, None)
        for number, line in enumerate(lines, 1):
            try:
                chained = parse_line(line)
                if chained.entry.sequence < 1:
                    raise ValueError("its sequence number is below 1")
            except ValueError as exc:
                self._report.add(Kind.UNREADABLE, None, f"line {number}: {exc}")
                continue
            self._look_at(chained)
        self._finish()
        return self._report

    def _look_at(self, chained: ChainedEntry) -> None:
        report, entry = self._report, chained.entry
        report.entries += 1
        report.trail = report.trail or entry.trail
        if entry.trail != report.trail:
            report.add(Kind.FOREIGN, entry.sequence, f"is of the trail {entry.trail!r}")
            return
        if entry.sequence <= report.last:
            self._out_of_order(chained)
            return
        good = True
        if entry.sequence > report.last + 1:
            self._unsigned.clear()
            # Whether it follows what is missing can be told at the end, if at all.
            if len(self._gaps) < _MOST:
                self._gaps.append(_Gap(report.last + 1, entry.sequence - 1, chained))
            else:
                report.further += 1
            computed = chained.hash
        else:
            possible = {entry.hash_after(previous) for previous in self._previous}
            good = chained.hash in possible
            computed = chained.hash if good else min(possible)
            if not good:
                report.add(Kind.ALTERED, entry.sequence, "its hash is not that of what it says")
        self._previous = frozenset({chained.hash, computed})
        report.first = report.first or entry.sequence
        report.last = entry.sequence
        if good:
            self._remember_absence(chained)
        self._compare_heads(chained)

    def _out_of_order(self, chained: ChainedEntry) -> None:
        sequence = chained.entry.sequence
        for place, gap in enumerate(self._gaps):
            if gap.first <= sequence <= gap.last:
                self._report.add(Kind.REORDERED, sequence, "comes after later ones")
                rest = [(gap.first, sequence - 1), (sequence + 1, gap.last)]
                self._gaps[place : place + 1] = [
                    _Gap(first, last, gap.after) for first, last in rest if first <= last
                ]
                return
        self._report.add(Kind.REPEATED, sequence, "is there again")
        self._previous |= {chained.hash}

    def _remember_absence(self, chained: ChainedEntry) -> None:
        act = chained.entry.act
        if act.action == RECOVERED and not act.succeeded:
            # The heads from here on vouch for what comes, not for what that process found.
            self._unsigned.clear()
        if act.action not in (PRUNED, SKIPPED):
            return
        first = act.details.get("first_sequence")
        last, stated = act.details.get("last_sequence"), act.details.get("last_hash")
        try:
            hash_ = bytes.fromhex(str(stated))
        except ValueError:
            return
        if isinstance(first, int) and isinstance(last, int) and last < chained.entry.sequence:
            self._unsigned.append((first, last, hash_))

    # Heads

    def _read(self, lines: Iterable[bytes]) -> Iterator[Head]:
        for number, line in enumerate(lines, 1):
            try:
                yield parse_head(line)
            except ValueError as exc:
                self._report.add(Kind.HEAD_UNREADABLE, None, f"head {number}: {exc}")

    def _good_heads(self, heads: Iterable[Head], *, ordered: bool) -> Iterator[Head]:
        """Those that are genuine, of this trail, and by a key that is believed."""
        last = 0
        for head in heads:
            self._report.trail = self._report.trail or head.trail
            if not is_genuine(head):
                self._report.add(Kind.HEAD_FORGED, head.sequence, "its signature is not good")
            elif head.trail != self._report.trail:
                self._report.add(Kind.FOREIGN, head.sequence, f"head of the trail {head.trail!r}")
            elif not self._believed(head.public_key):
                text = f"signed with the key {head.key_id}, which is not known"
                self._report.add(Kind.UNKNOWN_KEY, head.sequence, text)
            elif ordered and head.sequence < last:
                self._report.add(Kind.HEAD_MOVED, head.sequence, "comes after a later head")
            else:
                last = head.sequence
                self._any_head = True
                yield head

    def _believed(self, key: bytes) -> bool:
        if not self._keys:
            self._keys = frozenset({key})
        if key not in self._keys:
            return False
        self._report.key = key
        return True

    def _compare_heads(self, chained: ChainedEntry) -> None:
        """Passes the heads up to this entry."""
        sequence = chained.entry.sequence
        while self._head is not None and self._head.sequence <= sequence:
            if self._head.sequence < sequence:
                # Its entry is missing; what was removed because of its age states its hash.
                if len(self._early) < _MOST:
                    self._early.append(self._head)
            elif self._head.hash in self._previous:
                self._report.signed = sequence
                self._stated += self._unsigned
                self._unsigned.clear()
            else:
                self._report.add(Kind.HEAD_DIFFERS, sequence, "was signed with another hash")
            self._head = next(self._heads, None)

    # At the end

    def _finish(self) -> None:
        report = self._report
        for gap in self._gaps:
            self._judge(gap)
        stated = {last: hash_ for _, last, hash_ in self._stated}
        for head in self._early:
            if stated.get(head.sequence, head.hash) != head.hash:
                report.add(Kind.HEAD_DIFFERS, head.sequence, "was signed with another hash")
        beyond = 0
        while self._head is not None:
            beyond = max(beyond, self._head.sequence)
            self._head = next(self._heads, None)
        if beyond > report.last:
            text = f"the trail ends here, but was signed up to {beyond}"
            report.add(Kind.TRUNCATED, report.last, text)
        if report.entries and not self._any_head:
            report.add(Kind.NOT_SIGNED, report.last, "no head that is believed vouches for it")

    def _judge(self, gap: _Gap) -> None:
        """Whether the trail itself says why something is not there."""
        report = self._report
        for first, last, stated in self._stated:
            if first <= gap.first and last == gap.last:
                report.absent.append((gap.first, gap.last))
                after = gap.after.entry
                if last + 1 == after.sequence and after.hash_after(stated) != gap.after.hash:
                    report.add(Kind.ALTERED, after.sequence, "does not follow what was removed")
                return
        missing = f"{gap.first} to {gap.last} are missing"
        if gap.first == 1:
            report.add(
                Kind.START_MISSING, 1, f"{missing}, and no entry says that they were removed"
            )
        else:
            report.add(Kind.MISSING, gap.first, missing)


def _by_sequence(head: Head) -> int:
    return head.sequence
