"""A real vLLM whose engine core stops in the middle of a stream, seen by probes and by Consul.

The core is a process of its own: with SIGSTOP it does what a stuck device makes it do. Its port
stays open all the while, and the process that has the port answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
import pytest

from anabranch.v1 import errors_pb2, model_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from tests.support.auth import auth, bearer
from tests.support.consul import ROOT, ConsulAgent, running_consul
from tests.support.engines import MODEL
from tests.support.health import answers, http_answers, reason, until_answers
from tests.support.waiting import BOUND_S, until
from tools.cluster.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "small"
LOADS_S = 300.0
YES, NO = True, False
# Between the two the test looks around; a step on a busy machine stays well below the first.
HANG_AFTER, HANG_EXIT = 5.0, 40.0


class Engine:
    """An engine process of its own."""

    def __init__(self, consul: ConsulAgent, auth_address: str, log: Path) -> None:
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
            "HANG_AFTER": str(HANG_AFTER),
            "HANG_EXIT": str(HANG_EXIT),
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
async def engine(tmp_path: Path) -> AsyncIterator[tuple[Engine, str]]:
    """A serving engine, and a token for it."""
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    async with running_consul() as consul, auth(tmp_path) as front:
        caller = await front.new_client("caller", "generate")
        token = await front.token("caller", caller)
        found = Engine(consul, front.address, tmp_path / "engine.log")
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
        while not heard or heard[-1] != (YES, YES, YES):
            assert found.process.returncode is None, found.log.read_text()[-3000:]
            with suppress(grpc.aio.AioRpcError):  # it does not listen yet
                heard.append(await answers(probes))
            await asyncio.sleep(0.2)
    return heard


def stream(channel: grpc.aio.Channel, token: str, tokens: int) -> Any:
    asked_for = pb.GenerateRequest(
        model=NAME, prompt="Once", sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True)
    )
    return model_pb2_grpc.ModelServiceStub(channel).StreamGenerate(
        asked_for, metadata=bearer(token), timeout=600
    )


async def rest(call: Any) -> list[pb.GenerateChunk]:
    chunks = []
    while (chunk := await call.read()) is not grpc.aio.EOF:
        chunks.append(chunk)
    return chunks


async def test_a_stopped_engine_core_is_found_told_forgiven_and_in_the_end_given_up(tmp_path):
    async with (
        engine(tmp_path) as (found, token),
        open_channel(found.probes) as probes,
        open_channel(found.address) as channel,
    ):
        heard = await until_loaded(found, probes)
        # Loading and warming up were neither started nor ready, and never dead.
        assert heard[0] == (NO, NO, YES)
        assert all(live for _, _, live in heard)
        await found.until_consul_says("passing")

        # It stops in the middle of a stream, and goes on.
        call = stream(channel, token, 600)
        first = await call.read()
        core = found.core
        core.send_signal(signal.SIGSTOP)
        await until_answers(probes, YES, NO, NO)
        assert await http_answers(found.http) == (YES, NO, NO)
        assert "no step" in await reason(found.http, "/livez")
        await found.until_consul_says("critical")
        _, writer = await asyncio.open_connection(*found.address.split(":"))
        writer.close()
        core.send_signal(signal.SIGCONT)
        await until_answers(probes, YES, YES, YES)
        await found.until_consul_says("passing")
        last = (await rest(call))[-1]
        assert last.usage.completion_tokens == 600
        assert first.first_token == 0

        # It stops for good: the one status says how far the stream came, and the process ends.
        call = stream(channel, token, 1500)
        await call.read()
        core.send_signal(signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await rest(call)
        fault = fault_from_rpc_error(failed.value)
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert "no step" in fault.message
        assert int(fault.metadata["tokens_delivered"]) > 0
        async with asyncio.timeout(2 * BOUND_S):
            assert await found.process.wait() == 1
        assert not core.is_running()
        assert await found.consul_says() == "gone"
    log = found.log.read_text()
    assert log.count("the engine hangs") == 2
    assert log.count("the engine works again") == 1
    assert log.count("engine given up") == 1
