"""Which cores the measured service and its caller run on: one each, where there are two."""

from __future__ import annotations

import os
from collections.abc import Iterable


def service_core() -> int:
    """The core of the auth service."""
    return min(os.sched_getaffinity(0))


def caller_core() -> int:
    """The core of whoever calls it; the same one on a machine that has no other."""
    return max(os.sched_getaffinity(0))


def pin(pids: Iterable[int], core: int) -> None:
    """Keeps processes on a core, with their threads of now and those that these will start."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})
