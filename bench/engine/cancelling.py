"""How long a cancelled stream keeps its slot, seen from outside and alike on every path.

Every slot is taken, and one more request waits. Then one running stream is cancelled: the one that
waits gets its first token once the slot is free and its prompt is read. Then all others are
cancelled, and what is told of the KV cache falls. Load reports alone would not do: they leave out
what callers have given up, whether the engine has heard of it or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.engine.flight import Flight

_AT_MOST_S = 120.0
_POLL_S = 0.002
_FURTHER = 3
"""Tokens that every running stream gets while one more waits, which shows that it waits."""

_FALLEN = 0.25
"""Share of the KV cache's use that one of many streams stays below."""


class NotFull(Exception):
    """The request that was to wait did not: nothing can be said."""


async def measure(
    fillers: Sequence[Flight],
    wait: Callable[[], Awaitable[Flight]],
    stop: Callable[[int], Awaitable[None]],
    kv_used: Callable[[], Awaitable[float]],
) -> dict[str, float]:
    """Milliseconds from a cancel to the first token of who waited for the slot, and from the cancel
    of everything else to a KV cache that is nearly empty, as told.

    `fillers` are running, one for each slot; `wait` sends one more, `stop` cancels so many of them.
    Raises TimeoutError, NotFull.
    """
    async with asyncio.timeout(_AT_MOST_S):
        await _until(lambda: all(flight.tokens for flight in fillers))
        waiter = await wait()
        had = [flight.tokens for flight in fillers]
        await _until(
            lambda: all(f.tokens >= n + _FURTHER for f, n in zip(fillers, had, strict=True))
        )
        if waiter.tokens:
            raise NotFull("the engine runs more streams than it was told to, or some have ended")
        moment = time.monotonic()
        await stop(1)
        await _until(lambda: bool(waiter.tokens or waiter.error))
        if waiter.error:
            raise NotFull(waiter.error)
        slot = waiter.first - moment
        full = await kv_used()
        moment = time.monotonic()
        await stop(len(fillers) - 1)
        while await kv_used() > full * _FALLEN:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_POLL_S)
        return {"slot_ms": slot * 1e3, "kv_ms": (time.monotonic() - moment) * 1e3}


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is looked at changes in this loop
        await asyncio.sleep(_POLL_S)
