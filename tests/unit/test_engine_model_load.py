"""A load knows the processes that it starts: why they died, and how to end them. No vLLM here."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time

import pytest

from services.local_engine.on_vllm.model_load import ModelLoad
from tests.support.waiting import BOUND_S, until

SPAWN = multiprocessing.get_context("spawn")


async def test_what_a_dead_process_said_is_the_cause_and_was_passed_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = b"INFO x\n(EngineCore pid=7) ValueError: no room for 3 GiB\n"

    def work() -> None:
        child = SPAWN.Process(target=os.write, args=(2, said))
        child.start()
        child.join()
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    load = ModelLoad(work)
    with pytest.raises(RuntimeError, match="initialization failed"):
        await load.result()
    assert load.cause == "no room for 3 GiB"
    assert "no room for 3 GiB" in capfd.readouterr().err
    assert load.children() == []
    os.write(2, b"after\n")
    assert "after" in capfd.readouterr().err


async def test_an_abandoned_load_ends_the_process_that_it_waits_for_and_no_other() -> None:
    other = SPAWN.Process(target=time.sleep, args=(600,))
    other.start()

    def work() -> int:
        child = SPAWN.Process(target=time.sleep, args=(600,))
        child.start()
        child.join()
        return child.exitcode or 0

    load = ModelLoad(work)
    waiting = asyncio.create_task(load.result())

    async def started() -> bool:
        return bool(load.children())

    await until(started)
    waiting.cancel()
    async with asyncio.timeout(BOUND_S):
        await load.abandon()
        await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert load.children() == []
    assert other.is_alive()
    other.kill()
    other.join()
