"""The audit trail of a process: places acts in the chain, and has its sinks keep them.

An administrative act waits until one sink has it safe, and is refused when none has. What is only
noted waits in a bounded memory while no sink works; when that is full, the process should take
nothing more that must be noted (`accepts`). Where entries are kept is the sinks' business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from anabranch.v1 import errors_pb2
from services.chassis.audit.entry import Act, ChainedEntry, Scalar, chain
from services.chassis.audit.head import Signer
from services.chassis.audit.lane import TIMEOUT_S, Lane
from services.chassis.audit.sink import Sink
from services.chassis.audit.verify import SKIPPED
from services.chassis.errors import Fault, Work, reason_name

_log = logging.getLogger(__name__)
# Administrative acts, for a process that keeps no trail; a trail's own entries go to its sinks.
_acts = logging.getLogger("anabranch.audit")

OMITTED = "entries.omitted"
"""The action of the entry that counts what found no room while no sink worked."""

_PLACED_AT_ONCE = 64
_CHAIN_AGAIN_S = 0.5


class Chain(Protocol):
    """Gives acts their places. One that `stores` keeps them as well, such as a database that
    several processes share: its entries are safe once they are placed."""

    stores: bool

    async def extend(self, acts: Sequence[tuple[Act, float]]) -> Sequence[ChainedEntry]:
        """Places acts, each with its time in seconds since the epoch, in their order; all or none.

        Calls follow each other. Whatever it raises, the same acts come again.
        """


class LocalChain:
    """The chain of a trail that this process alone writes, behind `last`."""

    stores = False

    def __init__(self, trail: str, last: ChainedEntry | None = None) -> None:
        self._trail = trail
        self._last = last

    async def extend(self, acts: Sequence[tuple[Act, float]]) -> Sequence[ChainedEntry]:
        """As Chain.extend; fails never."""
        placed = []
        for act, when in acts:
            self._last = chain(self._last, act, trail=self._trail, time=when)
            placed.append(self._last)
        return placed


@dataclass(slots=True)
class _Waiting:
    """An act without a place. `safe` is set for those that somebody waits for."""

    act: Act
    time: float
    safe: asyncio.Future[ChainedEntry] | None = None


class Trail:
    """`sinks` may be none: then nothing is kept, and administrative acts are only logged.

    `spool` bounds the entries that wait in memory while no sink works; requests that run already
    may take as many again.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        chain: Chain | None = None,
        signer: Signer | None = None,
        *,
        spool: int = 10_000,
        clock: Callable[[], float] = time.time,
        timeout: float = TIMEOUT_S,
    ) -> None:
        assert not sinks or (chain is not None and signer is not None)
        self._clock = clock
        self._chain = chain
        self._spool = spool
        self._timeout = timeout
        self._chain_fails = False
        self._waiting: deque[_Waiting] = deque()
        self._promises: deque[tuple[ChainedEntry, asyncio.Future[ChainedEntry]]] = deque()
        self._wake = asyncio.Event()
        self._all_placed = asyncio.Event()
        self._all_placed.set()
        self._placed = 0
        self._kept = 0
        self._unwritten = 0
        self.chores: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What goes on beside the writing, until it is cancelled."""
        self.omitted = 0
        """Acts that found no room, and of which no entry tells yet."""
        self.lanes = [
            Lane(sink, signer, clock, self._changed, timeout=timeout)
            for sink in sinks
            if signer is not None
        ]

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._chain is not None and (bool(self.lanes) or self._chain.stores)

    @property
    def down(self) -> bool:
        """Whether nothing can be kept at the moment."""
        if not self.enabled or self._chain is None:
            return False
        if self._chain_fails:
            return True
        return not self._chain.stores and all(lane.failing for lane in self.lanes)

    @property
    def spooled(self) -> int:
        """Acts that are safe nowhere yet."""
        return len(self._waiting) + self._unwritten

    @property
    def accepts(self) -> bool:
        """Whether there is room for what new requests will have noted."""
        return not self.enabled or self.spooled < self._spool

    @property
    def half_full(self) -> bool:
        """Whether so much waits that there is room only for what must be noted."""
        return 2 * self.spooled >= self._spool

    def note(self, act: Act) -> bool:
        """Has an act written soon. False when there is no room for it; then it is only counted."""
        if not self.enabled:
            return True
        if self.spooled >= 2 * self._spool:
            self.omitted += 1
            return False
        self._add(_Waiting(act, self._clock()))
        return True

    async def record(self, act: Act) -> ChainedEntry | None:
        """Returns its entry once one sink has it safe, under a signed head; None without a trail.

        Raises Fault DEPENDENCY_UNAVAILABLE when no sink takes it. It may still be written later.
        """
        if not self.enabled:
            _acts.info("act", extra=_fields(act))
            return None
        if self.down:
            raise _cannot_record()
        safe: asyncio.Future[ChainedEntry] = asyncio.get_running_loop().create_future()
        self._add(_Waiting(act, self._clock(), safe))
        return await safe

    @asynccontextmanager
    async def act(self, act: Act) -> AsyncIterator[dict[str, Scalar]]:
        """Surrounds an administrative act: its intent is safe before it begins, and its outcome
        before it is answered. What is put into the dict belongs to the outcome.

        Raises Fault DEPENDENCY_UNAVAILABLE before the block when the intent cannot be recorded:
        nothing was done. After the block it says that it was done, and that its outcome could not
        be recorded; that is written as soon as a sink works.
        """
        outcome: dict[str, Scalar] = {}
        if not self.enabled:
            # One line is enough for a log: nothing is refused for the want of it.
            try:
                yield outcome
            except BaseException as exc:
                _acts.info("act", extra=_fields(_ended(act, 0, outcome, exc)))
                raise
            _acts.info("act", extra=_fields(_ended(act, 0, outcome, None)))
            return
        if self.down:
            raise _cannot_record()
        begun = replace(act, succeeded=False, details={**act.details, "phase": "begun"})
        try:
            entry = await self.record(begun)
        except BaseException as exc:
            # It may be written yet, and then it must not look as if it had been done.
            self.note(_ended(act, 0, outcome, exc))
            raise
        number = 0 if entry is None else entry.entry.sequence
        try:
            yield outcome
        except Exception as exc:
            await self._record_failure(_ended(act, number, outcome, exc))
            raise
        except BaseException as exc:
            self.note(_ended(act, number, outcome, exc))
            raise
        try:
            await self.record(_ended(act, number, outcome, None))
        except Fault as fault:
            _log.error("the outcome of an act is not recorded", extra=_fields(act))
            raise fault.after(Work.MAYBE_BILLED) from None

    async def run(self) -> None:
        """Writes until it is cancelled; see `finish`."""
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes:
                group.create_task(lane.run(), name=f"audit-{lane.sink.name}")
            for chore in self.chores:
                group.create_task(chore(), name="audit-chore")
            if self._chain is not None:
                group.create_task(self._place(), name="audit-chain")

    async def finish(self, within: float) -> None:
        """Waits for at most `within` seconds until everything is written and signed, then ends the
        sinks. `run` goes on meanwhile."""
        try:
            async with asyncio.timeout(within):
                await self._all_placed.wait()
                async with asyncio.TaskGroup() as group:
                    for lane in self.lanes:
                        group.create_task(lane.finish(lambda: not self.down))
        except TimeoutError:
            _log.error("audit entries are lost", extra={"entries": self.spooled})

    async def close(self) -> None:
        """Ends the sinks. After `run` was cancelled."""
        for lane in self.lanes:
            await lane.sink.close()

    # Inside

    async def _record_failure(self, ended: Act) -> None:
        """The caller hears of the failure itself, whether this can be recorded or not."""
        try:
            await self.record(ended)
        except Fault:
            _log.error("the outcome of an act is not recorded", extra=_fields(ended))

    def _add(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._all_placed.clear()
        self._wake.set()

    async def _place(self) -> None:
        assert self._chain is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [
                    self._waiting.popleft() for _ in range(min(len(self._waiting), _PLACED_AT_ONCE))
                ]
                try:
                    async with asyncio.timeout(self._timeout if self._chain.stores else None):
                        entries = await self._chain.extend([(w.act, w.time) for w in batch])
                except Exception as exc:  # noqa: BLE001 - whatever it is, the chain cannot be extended
                    self._waiting.extendleft(reversed(batch))
                    self._chain_failed(exc)
                    await asyncio.sleep(_CHAIN_AGAIN_S)
                    continue
                self._chain_fails = False
                self._promise(batch, entries)
                await asyncio.sleep(0)
            self._all_placed.set()

    def _promise(self, batch: Sequence[_Waiting], entries: Sequence[ChainedEntry]) -> None:
        stores = self._chain is not None and self._chain.stores
        self._placed = entries[-1].entry.sequence
        if stores:
            self._kept = self._placed
        else:
            self._unwritten += len(entries)
        sign = 0
        for waiting, entry in zip(batch, entries, strict=True):
            if waiting.act.action == SKIPPED:
                # Believed only under a head.
                sign = entry.entry.sequence
            if waiting.safe is None or waiting.safe.done():
                continue
            sign = entry.entry.sequence
            if stores:
                waiting.safe.set_result(entry)
            else:
                self._promises.append((entry, waiting.safe))
        for lane in self.lanes:
            if sign:
                lane.sign(sign)
            lane.offer(entries)
            lane.shed(self._spool, self._kept)
        if self.down:
            self._refuse()

    def _chain_failed(self, exc: Exception) -> None:
        if not self._chain_fails:
            self._chain_fails = True
            cause = f"{type(exc).__name__}: {exc}"
            _log.error("audit trail cannot be extended", extra={"cause": cause})
        self._refuse()

    def _changed(self, lane: Lane) -> None:
        """A lane wrote something, or fails."""
        if self._chain is not None and not self._chain.stores and lane.kept > self._kept:
            self._kept = lane.kept
            self._unwritten = self._placed - self._kept
            while self._promises and self._promises[0][0].entry.sequence <= self._kept:
                entry, safe = self._promises.popleft()
                if not safe.done():
                    safe.set_result(entry)
        if not lane.failing:
            for gap in lane.closed_gaps():
                self.note(
                    Act(
                        SKIPPED,
                        details={
                            "sink": lane.sink.name,
                            "first_sequence": gap.first,
                            "last_sequence": gap.last.entry.sequence,
                            "last_hash": gap.last.hash.hex(),
                        },
                    )
                )
        if self.down:
            self._refuse()
        elif self.omitted and self.accepts:
            count, self.omitted = self.omitted, 0
            self.note(Act(OMITTED, details={"count": count}))

    def _refuse(self) -> None:
        """Tells those who wait that nothing can be kept."""
        for waiting in self._waiting:
            if waiting.safe is not None and not waiting.safe.done():
                waiting.safe.set_exception(_cannot_record())
        while self._promises:
            _, safe = self._promises.popleft()
            if not safe.done():
                safe.set_exception(_cannot_record())


def _ended(act: Act, begun: int, outcome: Mapping[str, Scalar], error: BaseException | None) -> Act:
    details: dict[str, Scalar] = {**act.details, **outcome, "phase": "ended"}
    if begun:
        details["begun"] = begun
    if isinstance(error, Fault):
        details["error"] = reason_name(error.reason)
    elif error is not None:
        details["error"] = type(error).__name__
    return replace(act, succeeded=error is None, details=details)


def _fields(act: Act) -> dict[str, object]:
    return {
        "action": act.action,
        "client": act.client_id,
        "tenant": act.tenant,
        "target": act.target[:512],
        "succeeded": act.succeeded,
    }


def _cannot_record() -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        "the audit trail cannot be written at the moment, and nothing is done unrecorded",
        retry_after=1.0,
    )
