"""A router of two workers whose callers lose their connections, and come back to either of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from anabranch import AsyncClient
from anabranch.streams import AnswerStream
from tests.support.auth import until
from tests.support.cuttable import CuttableProxy, cuttable
from tests.support.workers import until_workers, values, workers
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.recipes import SIM_MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CALLERS = 8
TOKENS = 400


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Cluster]:
    # Slow enough that no answer ends before the last cut.
    engines = [EngineSpec("sim-1", EngineKind.SIM, SIM_MODEL, {"SIM_SLOWDOWN": "6"})]
    async with Cluster(tmp_path, engines=engines, cloud=False, router_workers=2) as cluster:
        await until_workers(cluster, 2)
        yield cluster


async def total(cluster: Cluster, name: str) -> float:
    """The counter, over both workers."""
    return sum((await values(cluster, f"anabranch_router_sessions_{name}_total")).values())


class Callers:
    """Clients that each read one answer, all over one network that can be cut."""

    def __init__(self, network: CuttableProxy, clients: list[AsyncClient]) -> None:
        self.network = network
        self._clients = clients
        self.begun = 0

    async def read_all(self) -> list[list[int]]:
        """Every caller's tokens."""
        return await asyncio.gather(*(self._read(client) for client in self._clients))

    async def _read(self, client: AsyncClient) -> list[int]:
        seen: list[int] = []
        async with self._ask(client) as stream:
            async for chunk in stream:
                self.begun += not seen and bool(chunk.token_ids)
                seen += chunk.token_ids
        return seen

    def _ask(self, client: AsyncClient) -> AnswerStream:
        return client.stream(
            model=SIM_MODEL, prompt="story", max_tokens=TOKENS, ignore_eos=True, seed=1
        )

    async def all_begun(self) -> bool:
        return self.begun == len(self._clients)


async def callers(stack: AsyncExitStack, router: Cluster) -> Callers:
    network = await stack.enter_async_context(cuttable(router.router))
    token = await router.token("demo")
    clients = [
        await stack.enter_async_context(AsyncClient(network.address, token=token))
        for _ in range(CALLERS)
    ]
    return Callers(network, clients)


async def test_who_comes_back_to_the_other_worker_goes_on_as_if_nothing_had_been(router):
    async with AsyncExitStack() as stack:
        some = await callers(stack, router)
        reading = asyncio.ensure_future(some.read_all())
        await until(some.all_begun, during=[reading])
        resumed = 0

        async def all_are_back() -> bool:
            return await total(router, "resumed") >= resumed

        # The kernel chooses the worker: of so many, some come to the other one.
        for _ in range(3):
            resumed += some.network.cut()
            await until(all_are_back, during=[reading])
        assert await total(router, "handed_over") > 0
        answers = await reading
        assert {len(answer) for answer in answers} == {TOKENS}
        assert all(answer == answers[0] for answer in answers)
        assert await total(router, "lost") == 0


async def test_a_session_is_resumed_while_its_worker_is_being_replaced(router):
    before = workers(router)
    async with AsyncExitStack() as stack:
        some = await callers(stack, router)
        reading = asyncio.ensure_future(some.read_all())
        await until(some.all_begun, during=[reading])
        os.kill(router.processes["router"].record.pid, signal.SIGHUP)

        async def a_successor_serves() -> bool:
            return len(set(workers(router)) - set(before)) > 0

        await until(a_successor_serves)
        some.network.cut()
        answers = await reading
        assert {len(answer) for answer in answers} == {TOKENS}
        assert all(answer == answers[0] for answer in answers)
