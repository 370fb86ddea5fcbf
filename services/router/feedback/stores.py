"""Opens where answers are remembered, as the settings say, and closes it after the last request.

Like the response cache's, it is opened before the server and closed after it: what ends while the
server drains can still be judged, at another router.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from services.router.feedback.answers import Answers
from services.router.feedback.memory import MemoryAnswers
from services.router.feedback.redis_answers import RedisAnswers


@asynccontextmanager
async def open_answers(
    redis: Redis | None, *, most: int, window: float
) -> AsyncIterator[Answers | None]:
    """Redis where there is one, otherwise memory; None where no answer is to be remembered.

    `window` in seconds. The client is left open.
    """
    if not most or not window:
        yield None
        return
    if redis is None:
        yield MemoryAnswers(most, window, time.monotonic)
        return
    shared = RedisAnswers(redis, most=most, window=window)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(shared.run(), name="feedback")
        try:
            yield shared
        finally:
            writing.cancel()
    await shared.finish()
