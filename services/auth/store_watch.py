"""Asks the database again and again whether it is there, and lets health say so.

Without it nobody can log in, so the process is not ready; other replicas may be. It is alive all
the same: a restart brings no database back, and what needs none, such as the keys, is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from services.auth.store import Store
from services.chassis.errors import Fault
from services.chassis.health import Health

CONCERN = "database"
_EVERY_S = 2.0
_ANSWER_WITHIN_S = 2.0
_PATIENCE_S = 3.0
"""A failover, or a pool that is used up for a moment, is shorter than this."""


async def watch_store(
    store: Store,
    health: Health,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Makes the process not ready while the database has been away for some seconds, until
    cancelled."""
    answered = clock()
    while True:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await store.ping()
        except (Fault, TimeoutError):
            if clock() - answered >= _PATIENCE_S:
                health.trouble(CONCERN, "the database is away", restart=False)
        else:
            answered = clock()
            health.well(CONCERN)
        await sleep(_EVERY_S)
