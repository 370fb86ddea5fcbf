"""Finds workers that no longer answer, and kills them: the supervisor replaces whoever dies.

One that is stuck keeps its share of the port, so the kernel goes on bringing it callers; and a
probe of the shared port mostly reaches a sibling. Nobody outside can tell, so it is found here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from services.chassis.workers.child import Child
from services.chassis.workers.questions import answers

_log = logging.getLogger(__name__)

_ASK_EVERY_S = 5.0
_ANSWER_WITHIN_S = 5.0
_MISSES = 3
"""Answers missed in a row: half a minute or so, in which a sound worker answers thousands of times,
however busy its machine."""


async def kill_the_stuck(children: Callable[[], Sequence[Child]]) -> None:
    """Looks after those that serve, until cancelled."""
    missed: dict[int, int] = {}
    while True:
        await asyncio.sleep(_ASK_EVERY_S)
        serving = [child for child in children() if child.serving.is_set() and not child.leaving]
        heard = await asyncio.gather(*(answers(child, _ANSWER_WITHIN_S) for child in serving))
        missed = {
            child.number: missed.get(child.number, 0) + 1
            for child, answered in zip(serving, heard, strict=True)
            if not answered
        }
        for child in serving:
            if missed.get(child.number, 0) >= _MISSES:
                _log.error("worker is stuck: killed", extra={"worker": child.index})
                child.cause = "it was stuck"
                child.kill()
