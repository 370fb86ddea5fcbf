"""How long a test waits before it gives up. It only ends hangs: no test decides by a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

BOUND_S = 60.0
"""For anything that a test waits for: no healthy run comes near it, however busy the machine.

What shows that something ends early needs something that would go on for longer than this.
"""


async def until(
    condition: Callable[[], Any],
    seconds: float = BOUND_S,
    *,
    during: asyncio.Future[Any] | None = None,
) -> None:
    """Polls an asynchronous condition.

    What goes on meanwhile, `during`, is expected to bring it about: should it fail, so does this,
    with its error.
    """
    async with asyncio.timeout(seconds):
        while not await condition():
            if during is not None and during.done():
                during.result()
            await asyncio.sleep(0.02)
