"""One sink of a trail: what it must still be given, its outages, and the heads signed for it.

Each sink has a task of its own, so that one that fails or hangs delays nobody but itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chassis.audit.entry import CONTENT, ChainedEntry
from services.chassis.audit.head import Head, Signer
from services.chassis.audit.sink import Sink

_log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""A sink that has not answered by then counts as failed, until it does."""

HEAD_EVERY_S = 5.0
HEAD_EVERY = 1000
"""Entries; and what is signed at the latest after `HEAD_EVERY_S`."""

_BATCH = 1000
_MOST_BYTES = 64 * 1024 * 1024
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


@dataclass(slots=True)
class Gap:
    """What one sink was not given, since it failed for too long: from the entry numbered `first`
    to `last`."""

    first: int
    last: ChainedEntry


class Lane:
    """`on_change(lane)` is called after each success and when an outage begins.

    `kept` is the sequence number of the last entry that the sink has; `failing` says that it takes
    nothing at the moment.
    """

    def __init__(
        self,
        sink: Sink,
        signer: Signer,
        clock: Callable[[], float],
        on_change: Callable[[Lane], None],
        *,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self.sink = sink
        self.failing = False
        self.kept = 0
        self.entries = 0
        self.failures = 0
        self._signer = signer
        self._clock = clock
        self._on_change = on_change
        self._timeout = timeout
        self._backlog: deque[ChainedEntry] = deque()
        self._bytes = 0
        # What the sink is being given, or failed to take. It comes again as it was, since some of
        # it may have been kept.
        self._batch: list[ChainedEntry] = []
        self._gaps: list[Gap] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._last: ChainedEntry | None = None
        self._unsigned = 0
        self._signed_at = float("-inf")
        self._sign_up_to = 0
        self._stopping = False

    def __len__(self) -> int:
        """Entries that it must still be given."""
        return len(self._batch) + len(self._backlog)

    def offer(self, entries: Sequence[ChainedEntry]) -> None:
        """More to write."""
        self._backlog.extend(entries)
        self._bytes += sum(map(_weight, entries))
        self._wake.set()

    def sign(self, sequence: int) -> None:
        """A head is signed as soon as this entry is written, before anybody hears that it is."""
        self._sign_up_to = max(self._sign_up_to, sequence)
        self._wake.set()

    def shed(self, most: int, safe: int) -> None:
        """Gives up the oldest entries beyond `most` that are safe elsewhere, up to `safe`."""
        while (len(self._backlog) > most or self._bytes > _MOST_BYTES) and self._backlog[
            0
        ].entry.sequence <= safe:
            entry = self._taken()
            if self._gaps and self._gaps[-1].last.entry.sequence == entry.entry.sequence - 1:
                self._gaps[-1].last = entry
            else:
                self._gaps.append(Gap(entry.entry.sequence, entry))

    def closed_gaps(self) -> list[Gap]:
        """The gaps behind which it went on writing; each is told once."""
        closed = [gap for gap in self._gaps if gap.last.entry.sequence < self.kept]
        del self._gaps[: len(closed)]
        return closed

    async def finish(self, dispensable: Callable[[], bool]) -> None:
        """Returns when everything is written and signed, or the sink fails and is `dispensable`:
        another has it all. Nothing is offered any more."""
        self._stopping = True
        self._wake.set()
        while len(self) or self._unsigned:
            if self.failing and dispensable():
                _log.error(
                    "audit sink lacks entries", extra={"sink": self.sink.name, "entries": len(self)}
                )
                return
            self._idle.clear()
            await self._idle.wait()

    async def run(self) -> None:
        """Writes until it is cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            await self._work()
            while self._backlog and len(self._batch) < _BATCH and not self._gap_follows():
                self._batch.append(self._taken())
            head = self._head_after(self._batch)
            if not self._batch and head is None:
                continue
            cause = await self._append(tuple(self._batch), head)
            if cause is None:
                pause = _FIRST_PAUSE_S
                self._written(head)
            else:
                self._failed(cause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _taken(self) -> ChainedEntry:
        entry = self._backlog.popleft()
        self._bytes -= _weight(entry)
        return entry

    def _gap_follows(self) -> bool:
        """Whether what comes after the batch does not follow it."""
        if not self._batch or not self._backlog:
            return False
        return self._backlog[0].entry.sequence != self._batch[-1].entry.sequence + 1

    async def _work(self) -> None:
        """Returns when there may be something to do."""
        if self._batch or self._backlog or (self._unsigned and self._due()):
            return
        self._wake.clear()
        left = self._signed_at + HEAD_EVERY_S - self._clock() if self._unsigned else None
        try:
            async with asyncio.timeout(left):
                await self._wake.wait()
        except TimeoutError:
            return

    def _due(self) -> bool:
        return (
            self._stopping
            or self._unsigned >= HEAD_EVERY
            or self._clock() - self._signed_at >= HEAD_EVERY_S
        )

    def _head_after(self, batch: Sequence[ChainedEntry]) -> Head | None:
        last = batch[-1] if batch else self._last
        unsigned = self._unsigned + len(batch)
        if last is None or not unsigned:
            return None
        asked = self.kept < self._sign_up_to <= last.entry.sequence
        # A head behind a gap vouches for nothing before it.
        if asked or unsigned >= HEAD_EVERY or self._due() or (batch and self._gap_follows()):
            return self._signer.sign(last, time=self._clock())
        return None

    async def _append(self, batch: Sequence[ChainedEntry], head: Head | None) -> str | None:
        """Why it failed; None when it did not. One that hangs is waited for, as it may end well:
        nothing is given to a sink twice at once."""
        work = asyncio.ensure_future(self.sink.append(batch, head))
        try:
            await asyncio.wait({work}, timeout=self._timeout)
            if not work.done():
                self._failed(f"does not answer within {self._timeout:g} s")
            await work
        except Exception as exc:  # noqa: BLE001 - whatever a sink raises is an outage of that sink
            return f"{type(exc).__name__}: {exc}"
        finally:
            work.cancel()
        return None

    def _written(self, head: Head | None) -> None:
        if self.failing:
            self.failing = False
            _log.info("audit sink recovered", extra={"sink": self.sink.name})
        if self._batch:
            self._last = self._batch[-1]
            self.kept = self._last.entry.sequence
            self._unsigned += len(self._batch)
            self.entries += len(self._batch)
            self._batch.clear()
        if head is not None:
            self._unsigned, self._signed_at = 0, self._clock()
        self._idle.set()
        self._on_change(self)

    def _failed(self, cause: str) -> None:
        self.failures += 1
        if not self.failing:
            self.failing = True
            _log.error("audit sink fails", extra={"sink": self.sink.name, "cause": cause})
        self._idle.set()
        self._on_change(self)


def _weight(entry: ChainedEntry) -> int:
    """About what it takes in memory, in bytes: contents are far larger than all else."""
    return 1024 + len(str(entry.entry.act.details.get(CONTENT, "")))
