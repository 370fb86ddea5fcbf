"""The end of an engine core is heard of from the kernel, or else from the flag."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import pytest

from services.local_engine.on_vllm import orphan_guard
from services.local_engine.on_vllm.core_failures import OUT_OF_MEMORY, core_failure
from services.local_engine.on_vllm.core_watch import core_died
from tests.support.waiting import BOUND_S

NEVER = 1e9


async def test_a_process_that_ends_by_itself_keeps_no_other_one_alive(monkeypatch):
    """It ends between the look at it and the signal."""
    gone, left = await child(), await child()
    births = {process.pid: orphan_guard._birth(process.pid) for process in (gone, left)}
    gone.kill()
    await gone.wait()
    monkeypatch.setattr(orphan_guard, "_birth", births.__getitem__)
    try:
        orphan_guard._guard([f"{pid} {birth}\n" for pid, birth in births.items()])
    finally:
        with contextlib.suppress(ProcessLookupError):
            left.terminate()
    async with asyncio.timeout(BOUND_S):
        assert await left.wait() == -signal.SIGKILL


async def child() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(99)")


async def test_a_killed_process_is_heard_of_without_asking():
    first, second = await child(), await child()
    watch = asyncio.ensure_future(core_died([first.pid, second.pid], lambda: False, NEVER))
    await asyncio.sleep(0)
    assert not watch.done()
    os.kill(second.pid, signal.SIGKILL)
    async with asyncio.timeout(BOUND_S):
        await watch
    first.kill()
    await asyncio.gather(first.wait(), second.wait())


async def test_a_process_that_is_gone_already_is_heard_of_too():
    gone = await child()
    gone.kill()
    await gone.wait()
    async with asyncio.timeout(BOUND_S):
        await core_died([gone.pid], lambda: False, NEVER)


@pytest.mark.parametrize("kernel_tells", [True, False])
async def test_the_flag_is_asked_all_the_same(kernel_tells, monkeypatch):
    if not kernel_tells:
        monkeypatch.delattr(os, "pidfd_open")
    said = iter([False, False, True])
    lives = await child()
    async with asyncio.timeout(BOUND_S):
        await core_died([lives.pid], lambda: next(said), 0.001)
    lives.kill()
    await lives.wait()


def test_only_a_lack_of_memory_is_known_as_one():
    fault = core_failure("error", f"{OUT_OF_MEMORY}the cause")
    assert fault is not None
    assert "cause" not in fault.message
    for reason, stop in (("error", None), ("error", 3), ("error", "x"), ("stop", OUT_OF_MEMORY)):
        assert core_failure(reason, stop) is None
