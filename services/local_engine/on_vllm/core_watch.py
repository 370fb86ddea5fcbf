"""Tells when vLLM's engine core has died: at once from the kernel, or from vLLM's own flag.

Does not import vLLM.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack


async def core_died(pids: Iterable[int], errored: Callable[[], bool], poll: float) -> None:
    """Returns once one of our child processes `pids` has ended, or `errored` says so.

    `errored` is asked every `poll` seconds: it knows of what ends no process, and is all there is
    where the kernel cannot tell of a process (Linux before 5.3).
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with ExitStack() as watched:
        for pid in pids:
            try:
                file = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            except (AttributeError, OSError):
                continue
            watched.callback(os.close, file)
            loop.add_reader(file, ended.set)
            watched.callback(loop.remove_reader, file)
        while not ended.is_set() and not errored():
            try:
                async with asyncio.timeout(poll):
                    await ended.wait()
            except TimeoutError:
                continue
