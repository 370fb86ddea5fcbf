"""The line of requests that wait for the same backends: who joins, who goes first, who is shed.

It answers three questions and does nothing by itself; the shell dispatches, and tells callers.

- Who joins: whoever finds a seat (admission.py) and can still be served in time at the pace of
  the line. What cannot is refused at once: an early no is worth more than a late one.
- Who goes first: SYSTEM, INTERACTIVE, BATCH; within a class the earliest deadline, then the first
  to come. One place in STRIDE belongs to those who have waited longer than their class's
  `promote_after`, whatever their class, the longest first. To promote them for good would let a
  backlog of batch work, which is old by nature, drive interactive requests past their deadlines.
- Who is shed: whoever's deadline has passed; then, while the waits of a class stand above target
  (codel.py), the oldest of the least important class that waits. SYSTEM is never shed for that.

Sources: earliest deadline first (Liu and Layland 1973); CoDel (RFC 8289).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from math import inf
from typing import Generic, NamedTuple

from services.router.core.admission import CLASSES, RANK, Seats
from services.router.core.codel import CoDel
from services.router.core.lane import Entry, K, Lane
from services.router.core.pace import Pace
from services.router.core.policy import AdmissionRules, ClassRules, PriorityClass

STRIDE = 4
OFFERED = 8
"""So many of a class's starving entries are offered a place before the usual order goes on."""
HOPELESS = 1.5
"""A wait of so many times what is left is refused at once; the pace is only an estimate."""


class Admitted(NamedTuple):
    """It waits, behind so many."""

    ahead: int
    expected_wait: float


class Reason(Enum):
    """Why one may not wait, or no longer."""

    FULL = "full"
    """No seat for its class."""
    TOO_LATE = "too_late"
    """Its deadline has passed, or will have when its turn comes."""
    WAITED_TOO_LONG = "waited_too_long"
    """It waited `max_wait` seconds, or would."""
    STANDING_LINE = "standing_line"
    """Shed, so that others do not wait in vain."""


class Refused(NamedTuple):
    """It may not wait; `retry_after` is about how many seconds the line takes."""

    reason: Reason
    retry_after: float


class Shed(NamedTuple, Generic[K]):
    """One that has left the line unserved."""

    key: K
    reason: Reason


class Line(Generic[K]):
    """One line. Keys are the shell's; times are in seconds on one monotonic clock.

    `seats` may be shared by several lines, one for each model: requests that wait for different
    backends do not stand in one another's way, but their number is bounded together.
    """

    __slots__ = (
        "_codels",
        "_entries",
        "_lanes",
        "_next_number",
        "_pace",
        "_passed_over",
        "_promote_after",
        "_rules",
        "_seats",
    )

    def __init__(self, rules: AdmissionRules, seats: Seats | None = None) -> None:
        self._seats = Seats(rules) if seats is None else seats
        self._entries: dict[K, Entry[K]] = {}
        self._lanes: tuple[Lane[K], ...] = tuple(Lane() for _ in CLASSES)
        self._codels = tuple(CoDel(rules.codel_interval) for _ in CLASSES)
        self._pace = Pace()
        self._next_number = 0
        self._passed_over = 0
        self.set_rules(rules)

    def set_rules(self, rules: AdmissionRules) -> None:
        """Other rules from now on; deadlines already given stay. Seats are told by their owner."""
        self._rules = rules
        usual = ClassRules()
        self._promote_after = [rules.classes.get(k, usual).promote_after for k in CLASSES]
        for codel in self._codels:
            codel.interval = rules.codel_interval

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def waiting(self, klass: PriorityClass) -> int:
        """How many of a class wait."""
        return len(self._lanes[RANK[klass]])

    def oldest_wait(self, now: float) -> float:
        """Seconds that the one who waits longest has waited; 0 when nobody does."""
        oldest = [entry.arrived for lane in self._lanes if (entry := lane.oldest()) is not None]
        return now - min(oldest) if oldest else 0.0

    def ahead(self, klass: PriorityClass, deadline: float = inf) -> int:
        """How many would go before one that joins now."""
        return self._ahead(RANK[klass], deadline)

    def expected_wait(self, klass: PriorityClass, now: float, deadline: float = inf) -> float:
        """Seconds after which one that joins now would be served.

        While the pace is unknown, what the oldest has waited.
        """
        return self._expected(self._ahead(RANK[klass], deadline), now)

    def join(
        self,
        key: K,
        klass: PriorityClass,
        now: float,
        deadline: float = inf,
        target: float = inf,
    ) -> Admitted | Refused:
        """Waits until `deadline` at most, the last moment at which to be dispatched is of use.

        `target` is the wait in seconds above which CoDel speaks of a standing line, see
        admission.codel_target; inf where waiting is no harm. ValueError for a key that waits.
        """
        if key in self._entries:
            raise ValueError("it waits already")
        rank = RANK[klass]
        longest = now + self._rules.max_wait
        patience_ends = longest <= deadline
        latest = longest if patience_ends else deadline
        ahead = self._ahead(rank, latest)
        expected = self._expected(ahead, now)
        gap = self._pace.gap
        if latest <= now or (gap is not None and ahead * gap > HOPELESS * (latest - now)):
            return Refused(Reason.WAITED_TOO_LONG if patience_ends else Reason.TOO_LATE, expected)
        if not self._seats.take(rank):
            return Refused(Reason.FULL, expected)
        if not self._entries:
            self._pace.began(now)
        entry = Entry(latest, self._next_number, now, target, rank, patience_ends, key)
        self._next_number += 1
        self._entries[key] = entry
        lane = self._lanes[rank]
        if not len(lane):
            self._codels[rank].fine(now)
        lane.add(entry)
        self._codels[rank].joined()
        return Admitted(ahead, expected)

    def leave(self, key: K) -> bool:
        """It waits no longer, unserved; false when it did not wait."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._remove(entry)
        return True

    def serve(self, key: K, now: float) -> bool:
        """There is capacity for it, and it leaves; false when it did not wait."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        self._remove(entry)
        self._pace.served(now)
        self._codels[entry.rank].served(now, now - entry.arrived, entry.target)
        if self._passed_over >= STRIDE - 1 and self._starves_at(entry) <= now:
            self._passed_over = 0
        else:
            self._passed_over += 1
        return True

    def in_order(self, now: float) -> Iterator[K]:
        """Who is to be offered capacity, the first one first.

        The line may change on the way; who joins then is not offered any. Who is dispatched leaves
        by `serve`. Costs what is walked.
        """
        usual = self._usual_order(self._next_number, now)
        last: Entry[K] | None = None
        starving: list[Entry[K]] | None = None
        offered: set[int] = set()
        while True:
            if self._passed_over >= STRIDE - 1:
                if starving is None:
                    starving = self._starving(now)
                if starving:
                    entry = starving.pop()
                    if self._entries.get(entry.key) is entry and not _passed(last, entry):
                        offered.add(entry.number)
                        yield entry.key
                    continue
            last = next(usual, None)
            if last is None:
                return
            if last.number not in offered:
                yield last.key

    def shed(self, now: float) -> list[Shed[K]]:
        """Takes out of the line, and returns, those who wait in vain.

        To be called at `next_shed`, and before capacity is offered.
        """
        gone: list[Shed[K]] = []
        for lane in self._lanes:
            while (entry := lane.earliest()) is not None and entry.deadline <= now:
                self._remove(entry)
                late = Reason.WAITED_TOO_LONG if entry.patience_ends else Reason.TOO_LATE
                gone.append(Shed(entry.key, late))
        for rank in range(1, len(CLASSES)):
            while self._stands(rank, now):
                entry = next(
                    oldest
                    for lane in reversed(self._lanes)
                    if (oldest := lane.oldest()) is not None
                )
                self._remove(entry)
                gone.append(Shed(entry.key, Reason.STANDING_LINE))
        return gone

    def next_shed(self, now: float) -> float:
        """When to call `shed` if nothing happens until then; inf when nobody waits."""
        at = inf
        for rank, lane in enumerate(self._lanes):
            earliest = lane.earliest()
            if earliest is None:
                continue
            at = min(at, earliest.deadline)
            oldest = lane.oldest()
            if rank and oldest is not None:
                at = min(at, self._codels[rank].next_look(oldest.arrived + oldest.target))
        return at

    def _remove(self, entry: Entry[K]) -> None:
        del self._entries[entry.key]
        self._lanes[entry.rank].remove(entry)
        self._seats.give_back(entry.rank)

    def _ahead(self, rank: int, deadline: float) -> int:
        above = sum([len(lane) for lane in self._lanes[:rank]])
        return above + self._lanes[rank].ahead_of(deadline)

    def _expected(self, ahead: int, now: float) -> float:
        gap = self._pace.gap
        return self.oldest_wait(now) if gap is None else (ahead + 1) * gap

    def _starves_at(self, entry: Entry[K]) -> float:
        return entry.arrived + self._promote_after[entry.rank]

    def _usual_order(self, before: int, now: float) -> Iterator[Entry[K]]:
        for lane in self._lanes:
            for entry in lane.in_order(before):
                if entry.deadline > now:
                    yield entry

    def _starving(self, now: float) -> list[Entry[K]]:
        """The first one last."""
        found: list[Entry[K]] = []
        for lane in self._lanes:
            oldest = lane.oldest()
            if oldest is not None and self._starves_at(oldest) <= now:
                found += [
                    entry
                    for entry in lane.longest_waiting(OFFERED)
                    if self._starves_at(entry) <= now < entry.deadline
                ]
        found.sort(key=lambda entry: (self._starves_at(entry), entry.number), reverse=True)
        return found

    def _stands(self, rank: int, now: float) -> bool:
        """Whether the class's waits demand that one be shed now."""
        lane, codel = self._lanes[rank], self._codels[rank]
        oldest = lane.oldest()
        if oldest is None:
            return False  # the next one who joins makes a new line
        overdue_since = oldest.arrived + oldest.target
        if overdue_since <= now and self._is_short(rank, oldest.target):
            codel.fine(now)
            return False
        codel.observe(now, overdue_since)
        return codel.sheds(now)

    def _is_short(self, rank: int, target: float) -> bool:
        """Whether one waits alone, or one who joined now would not wait longer than the target."""
        gap = self._pace.gap
        if len(self._lanes[rank]) == 1:
            return True
        return gap is not None and gap * self._ahead(rank, inf) <= target


def _passed(last: Entry[K] | None, entry: Entry[K]) -> bool:
    """Whether the usual order has come as far as an entry, and so has offered it."""
    return last is not None and (entry.rank, entry) <= (last.rank, last)
