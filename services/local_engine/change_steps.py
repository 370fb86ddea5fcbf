"""What changes of models have in common: how far they are, waiting for requests.

The changes themselves are model_changes.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from services.chassis.errors import Violation, invalid
from services.local_engine.roster import Served

_CUT_WITHIN_S = 2.0
LEAVES = "its model was taken out of service"


class Phase(Enum):
    """A part of a load, in order."""

    CHECKING = "checking"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has got. `served` is set with DONE, `cut_off` counts requests."""

    phase: Phase
    detail: str = ""
    in_flight: int = 0
    served: Served | None = None
    cut_off: int = 0


async def drained(left: Sequence[Served], drain: float) -> int:
    """Waits until nothing runs on any of them; what still does after so long is cut off."""
    try:
        async with asyncio.timeout(drain):
            for one in left:
                await one.idle()
    except TimeoutError:
        cut = sum(one.cut(LEAVES) for one in left)
    else:
        return 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_CUT_WITHIN_S):
            for one in left:
                await one.idle()
    return cut


async def pulse(task: asyncio.Task[Any], every: float) -> AsyncIterator[None]:
    """Something each so many seconds, until the task is over."""
    while not task.done():
        await asyncio.wait({task}, timeout=every)
        if not task.done():
            yield


def require(**fields: str) -> None:
    """Raises Fault INVALID_REQUEST for those that are empty."""
    faults = [Violation(name, "is required") for name, value in fields.items() if not value]
    if faults:
        raise invalid(faults)
