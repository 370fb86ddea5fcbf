"""A real vLLM engine in a process of its own, with a Consul and an auth service beside it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc
from tests.support.auth import auth, bearer
from tests.support.consul import ROOT, ConsulAgent, running_consul
from tests.support.engines import MODEL
from tests.support.health import answers
from tests.support.waiting import until
from tools.cluster.ports import free_port

NAME = "small"
LOADS_S = 300.0
LOADED = (True, True, True)
"""Startup, readiness, liveness."""


class Engine:
    """An engine process of its own."""

    def __init__(
        self, consul: ConsulAgent, auth_address: str, log: Path, settings: Mapping[str, str]
    ) -> None:
        self.address, self.probes, self.http = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.consul = consul
        self.log = log
        self.process: asyncio.subprocess.Process
        self.settings = {
            "LISTEN": self.address,
            "HTTP_LISTEN": self.http,
            "HEALTH_LISTEN": self.probes,
            "REGISTRY": consul.url,
            "AUTH_TARGET": auth_address,
            "SERVICE_ID": "engine-under-test",
            "MODEL": str(MODEL),
            "SERVED_MODEL_NAME": NAME,
            "MAX_MODEL_LEN": "2048",
            "MAX_NUM_SEQS": "4",
            "CPU_KV_CACHE_GIB": "1",
            **settings,
        }

    async def start(self) -> None:
        prefixed = {f"ANABRANCH_ENGINE_{name}": value for name, value in self.settings.items()}
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.local_engine"),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **prefixed},
                stdout=log,
                stderr=log,
            )

    @property
    def core(self) -> psutil.Process:
        """vLLM's engine core."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (core,) = [
            one for one in children if "EngineCore" in " ".join((one.name(), *one.cmdline()))
        ]
        return core

    async def consul_says(self) -> str:
        """The status of its health check."""
        url = f"http://127.0.0.1:{self.consul.http_port}/v1/health/checks/anabranch-engine"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            checks: list[dict[str, Any]] = await answer.json()
        return str(checks[0]["Status"]) if checks else "gone"

    async def until_consul_says(self, status: str) -> None:
        async def said() -> bool:
            return await self.consul_says() == status

        await until(said)


@asynccontextmanager
async def engine_process(tmp_path: Path, **settings: str) -> AsyncIterator[tuple[Engine, str]]:
    """A starting engine with these settings besides, and a token for it."""
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    async with running_consul() as consul, auth(tmp_path) as front:
        caller = await front.new_client("caller", "generate")
        token = await front.token("caller", caller)
        found = Engine(consul, front.address, tmp_path / "engine.log", settings)
        await found.start()
        family: list[psutil.Process] = []
        try:
            yield found, token
        finally:
            if found.process.returncode is None:
                family = psutil.Process(found.process.pid).children(recursive=True)
                found.process.kill()
                await found.process.wait()
            for left in family:
                if left.is_running():
                    left.kill()


async def until_loaded(found: Engine, probes: grpc.aio.Channel) -> list[tuple[bool, ...]]:
    """Waits for the end of the start; returns every answer heard on the way."""
    heard: list[tuple[bool, ...]] = []
    async with asyncio.timeout(LOADS_S):
        while not heard or heard[-1] != LOADED:
            assert found.process.returncode is None, found.log.read_text()[-3000:]
            with suppress(grpc.aio.AioRpcError):  # it does not listen yet
                heard.append(await answers(probes))
            await asyncio.sleep(0.2)
    return heard


def asked(tokens: int) -> pb.GenerateRequest:
    """A request for exactly so many."""
    return pb.GenerateRequest(
        model=NAME, prompt="Once", sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True)
    )


def stream(channel: grpc.aio.Channel, token: str, tokens: int) -> Any:
    """Such a request's answer."""
    return model_pb2_grpc.ModelServiceStub(channel).StreamGenerate(
        asked(tokens), metadata=bearer(token), timeout=600
    )


async def rest(call: Any) -> list[pb.GenerateChunk]:
    """What still comes. Raises the status of a call that fails."""
    chunks = []
    while (chunk := await call.read()) is not grpc.aio.EOF:
        chunks.append(chunk)
    return chunks
