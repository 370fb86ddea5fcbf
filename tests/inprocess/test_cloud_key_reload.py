"""Keys are changed while requests flow: none of them fails, and no key shows anywhere."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import aiohttp
import pytest

from services.chassis.errors import Fault
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.provider import KEY
from tests.support.waiting import BOUND_S

OLD = "sk-old-0123456789-planted-in-the-file"
NEW = "sk-new-0123456789-planted-in-the-file"
BAD = "sk-bad-0123456789-planted-in-the-file"
PATIENCE = {"first_token_timeout": 600.0, "inter_token_timeout": 600.0, "total_timeout": 600.0}


def write(directory: Path, *keys: str) -> None:
    """Swaps the file of the simulator's keys."""
    new = directory / ".new"
    new.write_text("".join(f"{key}\n" for key in keys))
    new.replace(directory / "simulator")


async def text_of_metrics(proxy: Proxy) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{proxy.host.http_address}/metrics") as response,
    ):
        return await response.text()


async def taken_up(caplog: pytest.LogCaptureFixture, times: int) -> list[logging.LogRecord]:
    """The records of changes that were taken up, once there are so many."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = [r for r in caplog.records if r.getMessage().startswith("keys were taken up")]
            if len(found) >= times:
                return found
            await asyncio.sleep(0.01)


@pytest.fixture
def mounted(tmp_path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir()
    return directory


async def test_no_request_fails_while_keys_are_rotated(tmp_path, mounted, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    write(mounted, OLD)
    stop = asyncio.Event()
    answers = 0

    async def flow(proxy: Proxy) -> None:
        nonlocal answers
        while not stop.is_set():
            chunks, ended = await proxy.chunks(ask("hello words=5"))
            assert ended is None, ended
            assert chunks
            answers += 1

    async with cloud_proxy(
        tmp_path, keys="", keys_dir=mounted, keys_poll_interval=0.05, accepted=(OLD, NEW, KEY),
        **PATIENCE,
    ) as proxy:  # fmt: skip
        async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
            flows = [group.create_task(flow(proxy)) for _ in range(4)]
            rotations = [(OLD, NEW), (NEW,), (KEY, NEW), (OLD,), (NEW,)]
            for number, keys in enumerate(rotations, start=1):
                before = answers
                write(mounted, *keys)
                records = await taken_up(caplog, number)
                while answers < before + 8:
                    await asyncio.sleep(0.01)
            stop.set()
        assert all(flow.done() for flow in flows)
        counts = [record.__dict__["keys"] for record in records]
        assert counts == [2, 1, 2, 1, 1]
        assert {record.__dict__["account"] for record in records} == {"key:simulator"}
        metrics = await text_of_metrics(proxy)
    records = "".join(f"{r.getMessage()} {r.__dict__} {r.exc_text}" for r in caplog.records)
    printed = "".join(capfd.readouterr())
    for key in (OLD, NEW, KEY):
        assert key not in records + printed + metrics


async def test_a_key_that_is_refused_is_replaced_at_once_by_a_new_file(tmp_path, mounted, caplog):
    caplog.set_level(logging.DEBUG)
    write(mounted, BAD)
    async with cloud_proxy(
        tmp_path, keys="", keys_dir=mounted, keys_poll_interval=0.05, accepted=(NEW,), **PATIENCE
    ) as proxy:
        with pytest.raises(Fault) as caught:
            await proxy.answer(ask())
        assert BAD not in f"{caught.value} {caught.value.metadata}"
        states = [line for line in (await text_of_metrics(proxy)).splitlines()
                  if line.startswith("anabranch_cloud_keys")]  # fmt: skip
        assert any('"rejected"' in line and 'name="simulator"' in line for line in states), states
        write(mounted, NEW)
        await taken_up(caplog, 1)
        # The old key rests for half a minute; the new one answers now.
        assert (await proxy.answer(ask())).choices
        assert await proxy.metric("anabranch_cloud_keys") == [1.0]
        # A file that cannot be used changes nothing.
        (mounted / "simulator").unlink()
        async with asyncio.timeout(BOUND_S):
            while "file of keys cannot be used" not in caplog.text:
                await asyncio.sleep(0.01)
        assert (await proxy.answer(ask())).choices
