"""A slower tier with patience, writes in the background, and rest when it fails.

A request waits for it at most `patience` seconds, and not at all while it rests: then a background
task finds out when it is usable again. Nothing here raises for what the tier does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from anabranch.v1 import generation_pb2 as pb
from services.chassis.tasks import Tasks
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.tiers import Tier, TierFailed

_log = logging.getLogger(__name__)

_FAILURES_TO_REST = 3
_REST_S = (0.5, 30.0)
_WAITING_BYTES = 16 * 1024 * 1024
_START_S = 1.0
_FLUSH_S = 1.0


class GuardedTier:
    """One tier as the cache uses it; `name` is for people, `patience` in seconds."""

    def __init__(self, tier: Tier, name: str, tasks: Tasks, *, patience: float) -> None:
        self.source: pb.CacheSource = tier.source
        self.name = name
        self._tier = tier
        self._tasks = tasks
        self._patience = patience
        self._resting = True
        self._rest = 0.0
        self._failures = 0
        self._told_resting = False
        self._told_unwritten = False
        self._waiting: OrderedDict[AnswerKey, tuple[Entry, float]] = OrderedDict()
        self._waiting_bytes = 0
        self._ring = asyncio.Event()
        self.dropped = 0

    @property
    def resting(self) -> bool:
        """Whether it is left alone."""
        return self._resting

    @property
    def held(self) -> int | None:
        """What the tier holds, where that is known."""
        return self._tier.held

    @property
    def waiting(self) -> int:
        """Entries to be written."""
        return len(self._waiting)

    async def start(self) -> None:
        """Opens the tier, and waits for that a little; what is not open yet is tried again."""
        opening = self._tasks.create_task(self._try_to_open(), name=f"open-{self.name}-cache")
        await asyncio.wait((opening,), timeout=_START_S)
        self._tasks.create_task(self._run(opening), name=f"{self.name}-cache")

    async def get(self, key: AnswerKey, longest: int) -> Entry | None:
        """The entry, if the tier says so in time."""
        if self._resting:
            return None
        # Not cancelled when it takes too long: a connection that is being made is made, and
        # one that is in use is not left in the middle of a reply.
        asking: asyncio.Task[Entry | TierFailed | None]
        asking = self._tasks.create_task(self._ask(key, longest))
        await asyncio.wait((asking,), timeout=self._patience)
        if not asking.done():
            self._failed(TierFailed("it took too long"))
            return None
        reply = asking.result()
        if isinstance(reply, TierFailed):
            self._failed(reply)
            return None
        self._failures = 0
        self._rest = 0.0
        return reply

    def offer(self, key: AnswerKey, entry: Entry, ttl: float) -> None:
        """Writes an entry soon, to be kept for `ttl` seconds, unless too much waits already."""
        if self._resting or self._waiting_bytes + entry.size > _WAITING_BYTES:
            self.dropped += 1
            return
        replaced = self._waiting.pop(key, None)
        self._waiting_bytes += entry.size - (replaced[0].size if replaced else 0)
        self._waiting[key] = (entry, ttl)
        self._ring.set()

    async def close(self) -> None:
        """Writes what waits, within a second, and closes the tier. Once its tasks have ended."""
        try:
            async with asyncio.timeout(_FLUSH_S):
                while self._waiting and not self._resting:
                    await self._write_next()
        except TimeoutError:
            _log.warning("answers were not written in time", extra={"tier": self.name})
        await self._tier.close()

    async def _ask(self, key: AnswerKey, longest: int) -> Entry | TierFailed | None:
        try:
            return await self._tier.get(key, longest)
        except TierFailed as failed:
            return failed

    async def _run(self, opening: asyncio.Task[None]) -> None:
        await opening
        while True:
            if self._resting:
                await asyncio.sleep(self._rest)
                await self._try_to_open()
            elif self._waiting:
                await self._write_next()
            else:
                self._ring.clear()
                await self._ring.wait()

    async def _write_next(self) -> None:
        key, (entry, ttl) = self._waiting.popitem(last=False)
        self._waiting_bytes -= entry.size
        try:
            await self._tier.put(key, entry, ttl)
        except TierFailed as failed:
            self.dropped += 1
            self._write_failed(failed)
        else:
            self._told_unwritten = False

    def _write_failed(self, failure: TierFailed) -> None:
        """A store that is full can still be read; one that is away is noticed by who reads."""
        if failure.useless:
            self._failed(failure)
        elif not self._told_unwritten:
            self._told_unwritten = True
            _log.warning("answer was not written", extra={"tier": self.name, "cause": str(failure)})

    async def _try_to_open(self) -> None:
        try:
            await self._tier.open()
        except TierFailed as failed:
            self._leave_alone(failed)
            return
        if self._told_resting:
            self._told_resting = False
            _log.info("cache is used again", extra={"tier": self.name})
        self._failures = 0
        self._resting = False

    def _failed(self, failure: TierFailed) -> None:
        self._failures += 1
        if not self._resting and (failure.useless or self._failures >= _FAILURES_TO_REST):
            self._leave_alone(failure)

    def _leave_alone(self, failure: TierFailed) -> None:
        """Until it can be opened again. Rests grow until somebody was answered in time."""
        shortest, longest = _REST_S
        self._rest = min(max(2 * self._rest, shortest), longest)
        if not self._told_resting:
            self._told_resting = True
            _log.warning("cache is left alone", extra={"tier": self.name, "cause": str(failure)})
        self._resting = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._ring.set()
