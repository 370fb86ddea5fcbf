"""What the workers of one router have agreed on: the document that was last put in force.

One writer after another, in the same order for all; a router of one process has a board too. What
is posted and when is decided in the sources.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from services.chassis.workers import Worker

HEARD_WITHIN_S = 5.0
_KEY = "policy"
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Posted:
    """A document that holds for all workers of a router.

    `text` is empty for the defaults; `held` names what the file held at that time, and `id` this
    very posting.
    """

    id: str
    text: str
    source: str
    held: str = ""


class Board(Protocol):
    """The last posting, and how many there have been."""

    @property
    def latest(self) -> Posted | None:
        """What holds now."""

    @property
    def revision(self) -> int:
        """How many postings there have been; 0 without any."""

    async def post(self, posted: Posted, after: int) -> bool:
        """Posts if the revision still is `after`; false when somebody else came first.

        Returns once `latest` is this one or a later one. Raises TimeoutError when that cannot be
        known within HEARD_WITHIN_S.
        """

    async def news(self) -> None:
        """Waits for a posting later than this call."""


class OwnBoard:
    """Of a router of one process."""

    def __init__(self) -> None:
        self.latest: Posted | None = None
        self.revision = 0
        self._news = asyncio.Event()

    async def post(self, posted: Posted, after: int) -> bool:
        if after != self.revision:
            return False
        self.latest = posted
        self.revision += 1
        self._news.set()
        self._news = asyncio.Event()
        return True

    async def news(self) -> None:
        await self._news.wait()


class SharedBoard:
    """Of several workers, through their supervisor: who starts later hears of it too."""

    def __init__(self, worker: Worker) -> None:
        self.latest: Posted | None = None
        self.revision = 0
        self._worker = worker
        self._news = asyncio.Event()
        self._ids: dict[int, str] = {}
        worker.on_shared(self._hear)

    async def post(self, posted: Posted, after: int) -> bool:
        self._worker.share(_KEY, asdict(posted), after=after)
        async with asyncio.timeout(HEARD_WITHIN_S):
            while self.revision <= after:
                await self._news.wait()
        return self._ids.get(after + 1) == posted.id

    async def news(self) -> None:
        await self._news.wait()

    def _hear(self, key: str, value: Any) -> None:
        if key != _KEY or value is None:
            return
        self.latest = Posted(**value)
        self.revision = self._worker.revision(_KEY)
        self._ids[self.revision] = self.latest.id
        self._ids.pop(self.revision - _REMEMBERED, None)
        self._news.set()
        self._news = asyncio.Event()
