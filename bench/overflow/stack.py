"""The processes of a run: auth, sim engines, the provider simulator, the cloud proxy, the router.

How processes are started is bench/processes.py; the load, and what is measured, are elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from anabranch.v1 import admin_pb2, admin_pb2_grpc
from bench.overflow.plan import (
    MODEL,
    OBJECTIVE,
    PROVIDER_FIRST_S,
    PROVIDER_TOKEN_S,
    Engines,
    Objective,
)
from bench.overflow.requests import ENDLESS, PRIVATE
from bench.processes import Processes, free_address
from tools import identities
from tools.cluster.process import ClusterError, ProcessSpec
from tools.cluster.recipes import PROVIDER_KEY, ROOT

_MANY = "20000"
_FOUND_S = 15.0
_ROUTER, _CLOUD, _PROVIDER = "router", "cloud", "provider"
_ENGINES, _CLOUDS = "anabranch-engine", "anabranch-cloud"


def objective_settings(objective: Objective, folder: Path) -> Mapping[str, str]:
    """How the router is told the objective: by a policy document."""
    file = folder / "policy.yaml"
    wanted = {"ttft": f"{objective.ttft}s", "tpot": f"{objective.tpot}s"}
    # JSON is YAML.
    file.write_text(json.dumps({"version": 1, "objectives": wanted}) + "\n", encoding="utf-8")
    return {"POLICY": f"file:{file}"}


class Stack:
    """The processes, up while the context is entered."""

    def __init__(self, folder: Path, engines: Engines) -> None:
        self._processes = Processes(folder)
        self._engines = engines
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._processes)
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def target(self) -> str:
        """host:port that callers call."""
        return self._processes.address(_ROUTER)

    @property
    def engine_names(self) -> list[str]:
        """The engines' processes."""
        return [f"engine-{number + 1}" for number in range(self._engines.count)]

    def pids(self) -> dict[str, list[int]]:
        """The processes under test, by name."""
        names = (_ROUTER, _CLOUD, _PROVIDER, "auth", *self.engine_names)
        return {name: self._processes.pids(name) for name in names}

    def backend_id(self, engine: str) -> str:
        """What the router calls an engine."""
        return f"{_ENGINES}-{self._processes.address(engine)}"

    async def authorization(self) -> str:
        """A caller's credential."""
        return await self._processes.authorization()

    async def kill(self, engine: str) -> None:
        """SIGKILL."""
        await self._processes.running(engine).kill()

    async def revive(self, engine: str) -> None:
        """Starts a killed engine again, where it was; returns when the router has it back."""
        await self._processes.launch(self._processes.running(engine).spec)
        await self._until_ready()

    async def provider_state(self) -> dict[str, int]:
        """How many requests the provider has seen, and of those how many private ones."""
        url = f"http://{self._processes.address(_PROVIDER)}/_sim/state"
        state = await asyncio.to_thread(_fetch, url)
        return {"seen": state["seen"], "private": state["watched"][PRIVATE]}

    async def _start(self) -> None:
        processes = self._processes
        auth = await processes.auth(identities.IDENTITIES)
        await processes.launch(_provider())
        reach = {"AUTH_TARGET": auth, "MAX_CONCURRENT_RPCS": _MANY, "LOG_LEVEL": "warning"}
        try:
            async with asyncio.TaskGroup() as tasks:
                for engine in self.engine_names:
                    tasks.create_task(self._engine(engine, reach))
                tasks.create_task(self._cloud(reach))
        except* ClusterError as failures:
            # The first to fail says why; the others were given up because of it.
            raise failures.exceptions[0] from None
        engines = ",".join(processes.address(name) for name in self.engine_names)
        backends = f"{_ENGINES}={engines};{_CLOUDS}={processes.address(_CLOUD)}"
        await processes.service(
            _ROUTER,
            "services.router",
            "ANABRANCH_ROUTER_",
            {
                **reach,
                "LOG_LEVEL": "info",
                "REGISTRY": f"static:{backends}",
                "CLIENT_ID": "router",
                "CLIENT_SECRET_FILE": str(processes.secrets / "router"),
                **objective_settings(OBJECTIVE, processes.folder),
            },
        )
        await self._until_ready()

    async def _engine(self, name: str, reach: Mapping[str, str]) -> None:
        engines = self._engines
        settings = {
            "ENGINE": "sim",
            "SERVED_MODEL_NAME": MODEL,
            "STEP_MODEL": engines.step_model,
            "MAX_NUM_SEQS": str(engines.slots),
            "MAX_NUM_BATCHED_TOKENS": str(engines.prefill_budget),
            "SIM_OUTPUT_TOKENS": str(ENDLESS),
        }
        await self._processes.service(
            name, "services.local_engine", "ANABRANCH_ENGINE_", {**reach, **settings}
        )

    async def _cloud(self, reach: Mapping[str, str]) -> None:
        key = self._processes.secrets / "provider"
        identities.write_private(key, PROVIDER_KEY + "\n")
        offer = {
            "name": MODEL,
            "provider": "simulator",
            "model": "sim-chat",
            "base_url": f"http://{self._processes.address(_PROVIDER)}",
            "api_key_file": str(key),
        }
        file = self._processes.folder / "models.yaml"
        file.write_text(json.dumps({"models": [offer]}) + "\n", encoding="utf-8")
        settings = {
            "MODELS_FILE": str(file),
            "MAX_IN_FLIGHT": _MANY,
        }
        await self._processes.service(
            _CLOUD, "services.cloud_proxy", "ANABRANCH_CLOUD_", {**reach, **settings}
        )

    async def _until_ready(self) -> None:
        """Waits until the router can use every engine and the cloud proxy."""
        metadata = (("authorization", await self._processes.authorization(identities.ADMIN)),)
        deadline = time.monotonic() + _FOUND_S
        wanted = self._engines.count + 1
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = admin_pb2_grpc.RouterAdminServiceStub(channel)
            while True:
                answer = await stub.ListBackends(
                    admin_pb2.ListBackendsRequest(), metadata=metadata, timeout=5.0
                )
                ready = [b for b in answer.backends if b.state == admin_pb2.BACKEND_STATE_READY]
                if len(ready) == wanted:
                    return
                if time.monotonic() > deadline:
                    raise ClusterError(f"the router has {len(ready)} of {wanted} backends")
                await asyncio.sleep(0.05)


def _provider() -> ProcessSpec:
    address = free_address()
    return ProcessSpec(
        name=_PROVIDER,
        argv=(
            *(sys.executable, "-m", "tools.provider_simulator", "--listen", address),
            *("--first-delay", str(PROVIDER_FIRST_S), "--token-delay", str(PROVIDER_TOKEN_S)),
            *("--watch", PRIVATE),
        ),
        env={"PYTHONPATH": str(ROOT)},
        probe="http",
        address=address,
        drain=5.0,
    )


def _fetch(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
