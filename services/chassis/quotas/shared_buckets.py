"""Asks Redis about buckets for a whole process, and notices within milliseconds when it is away.

One task sends what has gathered, so nobody who asks needs a connection or a task of its own, and
whoever waits is told after PATIENCE_S at the latest. What is decided then is gate.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from redis.exceptions import RedisError

from services.chassis.quotas.redis_buckets import RedisBuckets, Settle, Take, Taken
from services.chassis.redis_connection import LONGEST_S

_log = logging.getLogger(__name__)

PATIENCE_S = 0.015
"""So long a request waits for Redis at most: with what a timer is late, below 20 ms."""

SILENT_S = 0.1
"""A Redis that has not answered for so long is away. Longer than PATIENCE_S: a process that was
held up for a moment would count for itself for a second, while others share the whole quota."""

LOOK_AGAIN_S = 1.0
"""After this it is seen whether Redis answers again."""

_AT_ONCE = 128
_MOST_OWED = 10_000
_LAST_WORDS_S = 1.0


class Asked(Protocol):
    """Who asks Redis to take something."""

    def decide(self, taken: Taken | None) -> None:
        """Told once, and maybe at once; None: Redis does not say in time, or at all."""

    def learn(self, taken: Taken | None) -> None:
        """After `decide(None)`: what Redis said in the end; None: it does not know of it."""


class _Question:
    """A Take, and who waits for its answer."""

    __slots__ = ("_asked", "_late", "_timer", "take")

    def __init__(self, take: Take, asked: Asked) -> None:
        self.take = take
        self._asked = asked
        self._late = False
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._out_of_patience)

    def end(self, taken: Taken | None) -> None:
        """This is what Redis said."""
        self._timer.cancel()
        if not self._late:
            self._asked.decide(taken)
        if self._late or taken is None:
            self._asked.learn(taken)

    def _out_of_patience(self) -> None:
        self._late = True
        self._asked.decide(None)


class _Patience:
    """Calls `silent` after SILENT_S, in two halves: after a pause of this very process the answer
    is there, and is read within the second."""

    __slots__ = ("_silent", "_timer")

    def __init__(self, silent: Callable[[str], None]) -> None:
        self._silent = silent
        self._timer = asyncio.get_running_loop().call_later(SILENT_S / 2, self._half)

    def cancel(self) -> None:
        self._timer.cancel()

    def _half(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SILENT_S / 2, self._silent, "no answer in time")


class SharedBuckets:
    """Buckets in Redis, as one process asks for them. `run` works beside it."""

    def __init__(self, buckets: RedisBuckets) -> None:
        self._buckets = buckets
        self._questions: deque[_Question] = deque()
        # What is forgotten at most was taken and not used: too little is let through, not too much.
        self._owed: deque[Settle] = deque(maxlen=_MOST_OWED)
        self._wake = asyncio.Event()
        self._answers = False
        self._outage_told = False
        self._looks = 0

    @property
    def answers(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self._answers

    @property
    def looks(self) -> int:
        """How many times Redis was looked for."""
        return self._looks

    def ask(self, take: Take, asked: Asked) -> None:
        """Has Redis take this, while it answers."""
        self._questions.append(_Question(take, asked))
        self._wake.set()

    def settle(self, corrections: tuple[tuple[str, int], ...]) -> None:
        """Has Redis correct this; later, if it is away now."""
        self._owed.append(Settle(corrections))
        self._wake.set()

    async def run(self) -> None:
        """Asks Redis until cancelled; then tells it what is still owed, if it answers."""
        try:
            while True:
                await self._look()
                while self._answers:
                    await self._wake.wait()
                    self._wake.clear()
                    while self._answers and (self._questions or self._owed):
                        await self._exchange()
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            answers, self._answers = self._answers, False
            self._answer_nobody()
            if answers and self._owed:
                await self._last_words()

    async def _look(self) -> None:
        """Whether it is there, and soon enough. The first time it may take longer to connect."""
        self._looks += 1
        for _ in range(2):
            late = False
            try:
                async with asyncio.timeout(LONGEST_S):
                    began = asyncio.get_running_loop().time()
                    await self._buckets.perform([Take((), ())])
                    late = asyncio.get_running_loop().time() - began > SILENT_S
            except (RedisError, OSError, TypeError, ValueError) as error:
                self._silent(type(error).__name__)
                return
            if not late:
                break
        if late:
            self._silent("answers too late")
            return
        self._answers = True
        if self._outage_told:
            self._outage_told = False
            _log.info("quotas are counted together again")

    async def _exchange(self) -> None:
        asked = [self._questions.popleft() for _ in range(min(len(self._questions), _AT_ONCE))]
        owed = [self._owed.popleft() for _ in range(min(len(self._owed), _AT_ONCE))]
        patience = _Patience(self._silent)
        taken: list[Taken | None] = [None] * len(asked)
        try:
            async with asyncio.timeout(LONGEST_S):
                # What was not used first: it may be what somebody asks for.
                replies = await self._buckets.perform([*owed, *(each.take for each in asked)])
            taken = list(replies[len(owed) :])
        except (RedisError, OSError, TypeError, ValueError) as error:
            self._silent(type(error).__name__)
        finally:
            patience.cancel()
            for question, answer in zip(asked, taken, strict=True):
                question.end(answer)

    def _silent(self, cause: str) -> None:
        if not self._outage_told:
            self._outage_told = True
            _log.warning("quotas are counted by each process for itself", extra={"cause": cause})
        self._answers = False
        self._answer_nobody()

    def _answer_nobody(self) -> None:
        while self._questions:
            self._questions.popleft().end(None)

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while self._owed:
                    batch = [self._owed.popleft() for _ in range(min(len(self._owed), _AT_ONCE))]
                    await self._buckets.perform(batch)
        except (RedisError, OSError, TypeError, ValueError) as error:
            # The buckets fill by themselves.
            _log.warning("quotas could not be given back", extra={"cause": type(error).__name__})
