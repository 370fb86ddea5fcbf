"""A whole cluster in one process, with callers who check all that they hear.

When to do what is the state machine's choice, see tests/inprocess/test_interleavings.py.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc

from anabranch import AsyncClient
from anabranch.v1 import admin_pb2
from services.chassis.channels import open_channel
from tests.support.auth import bearer, until
from tests.support.checking_callers import (
    MEAN,
    Answer,
    Caller,
    PlainCaller,
    ReturningCaller,
    SessionCaller,
)
from tests.support.cuttable import CuttableProxy, cuttable
from tests.support.inprocess import Cluster, Engine, cluster

SETTLE_S = 60.0
"""Far more than all that runs could take; only a hang reaches it."""
# A window of little more than a message: a caller that pauses is soon behind.
_NARROW = [("grpc.http2.lookahead_bytes", 64), ("grpc.use_local_subchannel_pool", 1)]


class World:
    """The cluster and its callers."""

    def __init__(
        self,
        running: Cluster,
        stack: AsyncExitStack,
        auth: Any,
        network: CuttableProxy,
        client: AsyncClient,
    ) -> None:
        self.network = network
        self._client = client
        self._running = running
        self._stack = stack
        self._auth = auth
        self._engines = list(running.engines)
        self._leaving: list[asyncio.Task[None]] = []
        self._prompts = itertools.count()
        self.callers: list[Caller] = []

    @classmethod
    async def open(cls, directory: Path) -> World:
        stack = AsyncExitStack()
        running = await stack.enter_async_context(
            cluster(directory, engines=(cls._engine(), cls._engine()))
        )
        secret = await running.new_client("shop", "generate")
        token = await running.token("shop", secret)
        assert running.router is not None
        network = await stack.enter_async_context(cuttable(running.router.address))
        client = await stack.enter_async_context(AsyncClient(network.address, token=token))
        return cls(running, stack, bearer(token), network, client)

    @staticmethod
    def _engine() -> dict[str, Any]:
        return {"sim_speed": 4.0, "max_num_seqs": 6, "sim_output_tokens": MEAN}

    async def close(self) -> None:
        for caller in self.callers:
            await caller.leave()
        await self._stack.aclose()

    def wrong(self) -> list[str]:
        """What anybody has heard that must not be."""
        return [what for caller in self.callers for what in caller.wrong]

    # What can happen

    async def new_session(self) -> SessionCaller:
        caller = SessionCaller(await self._channel(), self._auth)
        self.callers.append(caller)
        return caller

    async def plain(self, limit: int, choices: int, *, whole: bool) -> None:
        answer = self.answer(limit, choices)
        self.callers.append(PlainCaller(await self._channel(), self._auth, answer, whole=whole))

    async def returning(self, limit: int, choices: int) -> None:
        self.callers.append(ReturningCaller(self._client, self.answer(limit, choices)))

    def answer(self, limit: int, choices: int) -> Answer:
        """A new request with a prompt of its own."""
        answer = Answer(f"question {next(self._prompts)}", limit, choices)
        answer.may_fail = bool(self._leaving)
        return answer

    async def add_engine(self) -> None:
        self._engines.append(await self._running.add_engine(**self._engine()))

    async def lose_engine(self, which: int, *, crash: bool) -> None:
        """One engine ends: orderly, or with its connections cut."""
        engine = self._engines.pop(which % len(self._engines))
        for caller in self.callers:
            for _, answer in caller.open_answers:
                answer.may_fail = True
        if crash:
            await engine.host._server.stop(0)
        self._leaving.append(asyncio.create_task(self._end(engine)))

    @staticmethod
    async def _end(engine: Engine) -> None:
        await engine.stop()
        assert not len(engine.host.model_service.requests)

    @property
    def engines(self) -> int:
        return len(self._engines)

    # And how it must end

    async def settle(self) -> None:
        """Everybody reads on; every answer ends, and nothing is left of it anywhere."""
        while self.engines < 2:
            await self.add_engine()
        while self.engines > 2:
            await self.lose_engine(0, crash=False)
        for caller in self.callers:
            caller.reads.set()
        await until(self._all_over, SETTLE_S)
        for caller in self.callers:
            if isinstance(caller, SessionCaller) and not caller.gone:
                await caller.close()
        await asyncio.gather(*self._leaving)
        self._leaving.clear()
        await until(self._idle, SETTLE_S)
        assert not self.wrong(), self.wrong()
        for caller in self.callers:
            for answer in caller.answers.values():
                assert answer.ends == 1 or (caller.gone and not answer.ends)
        await self._running.backends_ready(2)
        self.callers.clear()

    async def _all_over(self) -> bool:
        if self.wrong():
            return True
        return not any(caller.open_answers for caller in self.callers if not caller.gone)

    async def _idle(self) -> bool:
        router = self._running.router
        assert router is not None
        if len(router.model_service.requests):
            return False
        for engine in self._engines:
            service = engine.host.model_service
            load = service._handler.load()
            if len(service.requests) or load.running or load.waiting or load.kv_used_tokens:
                return False
        return not any(
            backend.in_flight
            for backend in await self._running.backends()
            if backend.state == admin_pb2.BACKEND_STATE_READY
        )

    async def _channel(self) -> grpc.aio.Channel:
        router = self._running.router
        assert router is not None
        return await self._stack.enter_async_context(open_channel(router.address, options=_NARROW))


async def end_quietly(world: World) -> None:
    """After a failure: another world takes its place, whatever became of this one."""
    with suppress(Exception):
        async with asyncio.timeout(SETTLE_S):
            await world.close()
