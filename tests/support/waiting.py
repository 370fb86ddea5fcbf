"""How long a test waits before it gives up. It only ends hangs: no test decides by a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

BOUND_S = 60.0
"""For anything that a test waits for: no healthy run comes near it, however busy the machine.

What shows that something ends early needs something that would go on for longer than this.
"""


async def until(
    condition: Callable[[], Any],
    seconds: float = BOUND_S,
    *,
    during: Iterable[asyncio.Future[Any]] = (),
) -> None:
    """Polls an asynchronous condition.

    What goes on meanwhile, `during`, is expected to bring it about: should any of it fail, so does
    this, with its error.
    """
    going_on = tuple(during)
    async with asyncio.timeout(seconds):
        while not await condition():
            for one in going_on:
                if one.done():
                    one.result()
            await asyncio.sleep(0.02)
