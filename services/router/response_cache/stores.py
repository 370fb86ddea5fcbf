"""Opens where answers are kept, as the settings say, and closes it after the last request.

It is opened before the server and closed after it: what ends while the server drains is still
kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis

from services.chassis.tasks import Tasks
from services.router.response_cache.disk_tier import DiskTier
from services.router.response_cache.guarded import GuardedTier
from services.router.response_cache.memory import MemoryTier
from services.router.response_cache.redis_tier import RedisTier
from services.router.response_cache.stored_form import SealedForm

_log = logging.getLogger(__name__)

# A Redis that is down or slow costs a request this much, and soon nothing.
_REDIS_PATIENCE_S = 0.02
_DISK_PATIENCE_S = 0.05


class Stores(NamedTuple):
    """The tiers, those beyond memory in the order in which they are asked, and their tasks."""

    memory: MemoryTier
    slower: Sequence[GuardedTier]
    tasks: Tasks


@asynccontextmanager
async def open_stores(
    *,
    memory_bytes: int,
    redis: Redis | None,
    directory: Path | None,
    disk_bytes: int,
    sealed: SealedForm | None = None,
) -> AsyncIterator[Stores]:
    """Memory, and Redis and a disk where there is such. The client is left open.

    Without `sealed`, what is kept beyond memory is readable there, and a warning says so.
    """
    if sealed is None and (redis is not None or directory is not None):
        _log.warning(
            "stored answers are not encrypted",
            extra={"cause": "encryption_keys_file is not set"},
        )
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        slower: list[GuardedTier] = []
        if redis is not None:
            shared = RedisTier(redis, sealed)
            slower.append(GuardedTier(shared, "redis", tasks, patience=_REDIS_PATIENCE_S))
        if directory is not None:
            disk = DiskTier(directory, disk_bytes, time.time, sealed)
            slower.append(GuardedTier(disk, "disk", tasks, patience=_DISK_PATIENCE_S))
        await asyncio.gather(*(guarded.start() for guarded in slower))
        try:
            yield Stores(MemoryTier(memory_bytes), slower, tasks)
        finally:
            tasks.cancel_all()
    for guarded in slower:
        await guarded.close()
