"""After a cancel the connection closes at once; where a provider bills the whole answer anyway, it
is read on for a bounded time, so that the account is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.profile_files import PROFILES
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.waiting import BOUND_S


@asynccontextmanager
async def draining(directory: Path, seconds: float, **changes: Any) -> AsyncIterator[Proxy]:
    """A proxy whose provider bills whole answers."""
    profile = yaml.safe_load((PROFILES / "simulator.yaml").read_text(encoding="utf-8"))
    profiles = directory / "profiles"
    profiles.mkdir()
    document = yaml.safe_dump({**profile, "drain_seconds": seconds})
    (profiles / "simulator.yaml").write_text(document, encoding="utf-8")
    patience = {"first_token_timeout": 600.0, "inter_token_timeout": 600.0}
    async with cloud_proxy(directory, profiles_dir=profiles, **patience, **changes) as proxy:
        yield proxy


async def cancel_after_output(proxy: Proxy, request: pb.GenerateRequest) -> None:
    call = proxy.stub.StreamGenerate(request, metadata=proxy.metadata, timeout=BOUND_S)
    async for _ in call:
        break
    call.cancel()


async def metric(proxy: Proxy, name: str, condition: Callable[[float], bool]) -> None:
    """Waits until a metric's sum satisfies the condition."""
    async with asyncio.timeout(BOUND_S):
        while not condition(sum(await proxy.metric(name))):
            await asyncio.sleep(0.01)


async def test_cancelled_answer_is_read_on_and_billed_as_the_provider_says(tmp_path):
    async with draining(tmp_path, 30.0, token_delay=0.002) as proxy:
        await cancel_after_output(proxy, ask("tell words=200"))
        # 2 words of prompt at 1 and 203 of answer at 2 micro-USD: all of it, though it was cut.
        await metric(proxy, "anabranch_cloud_cost_total", lambda cost: cost == 2 + 2 * 202)
        state = await proxy.provider.state()
        assert (state["served"], state["aborted"]) == (1, 0)


async def test_reading_on_ends_when_its_time_is_over(tmp_path):
    async with draining(tmp_path, 0.2, token_delay=0.01) as proxy:
        await cancel_after_output(proxy, ask("tell words=90000"))
        await proxy.provider.until(lambda state: state["aborted"] == 1)
        await metric(proxy, "anabranch_cloud_cost_total", lambda cost: cost > 0)


async def test_nothing_is_read_on_before_the_first_output(tmp_path):
    async with draining(tmp_path, 30.0) as proxy:
        await proxy.provider.fault("slow_headers", seconds=600)
        call = proxy.stub.StreamGenerate(ask(), metadata=proxy.metadata, timeout=BOUND_S)
        await proxy.provider.until(lambda state: state["open"] == 1)
        call.cancel()
        await proxy.provider.until(lambda state: state["aborted"] == 1)


@pytest.mark.parametrize("whole", [False, True])
async def test_without_the_rule_the_connection_closes_at_once(tmp_path, whole):
    async with cloud_proxy(tmp_path, token_delay=0.01) as proxy:
        if whole:
            await proxy.provider.fault("slow_headers", seconds=600)
            request = ask(model="cloud-whole")
            call = proxy.stub.Generate(request, metadata=proxy.metadata, timeout=BOUND_S)
            await proxy.provider.until(lambda state: state["open"] == 1)
            call.cancel()
        else:
            await cancel_after_output(proxy, ask("tell words=90000"))
        await proxy.provider.until(lambda state: state["aborted"] == 1)
