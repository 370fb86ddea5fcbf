"""What changes of models have in common: how far they are, waiting for requests, refusals.

The changes themselves are model_changes.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation, Work, invalid
from services.local_engine.roster import Served

_T = TypeVar("_T")
_LEAVES = "its model was taken out of service"


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
        return sum(one.cut(_LEAVES) for one in left)
    return 0


async def pulse(task: asyncio.Task[Any], every: float) -> AsyncIterator[None]:
    """Something each so many seconds, until the task is over."""
    while not task.done():
        await asyncio.wait({task}, timeout=every)
        if not task.done():
            yield


async def settled(work: Coroutine[Any, Any, _T]) -> tuple[_T | None, Exception | None]:
    try:
        return await work, None
    except Exception as error:  # noqa: BLE001 - raised again by whoever waits for it
        return None, error


def refused(why: str) -> Fault:
    return Fault(errors_pb2.ERROR_REASON_MODEL_REFUSED, why, work=Work.NOT_DISPATCHED)


def require(**fields: str) -> None:
    """Raises Fault INVALID_REQUEST for those that are empty."""
    faults = [Violation(name, "is required") for name, value in fields.items() if not value]
    if faults:
        raise invalid(faults)
