"""The processes of a run: auth, an engine, the router with all that production has on, the proxies.

How processes are started is bench/processes.py; what they are measured with is elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import grpc

from anabranch.v1 import model_pb2, model_pb2_grpc
from bench.dataplane import gateways, openai_probe, proxies
from bench.dataplane import plan as plans
from bench.dataplane.fake_engine import PREFIX as FAKE_PREFIX
from bench.dataplane.fake_engine import model_name
from bench.processes import Processes, free_address
from tools import identities
from tools.cluster.process import ClusterError, ProcessSpec

EngineKind = Literal["fake", "sim"]

NEIGHBOUR = "neighbour"
"""A caller of another tenant than the usual one, `demo`."""

_CALLERS = (
    *identities.IDENTITIES,
    identities.Identity(NEIGHBOUR, NEIGHBOUR, ("generate",), "a caller of another tenant"),
)
_MANY = "20000"
_DISCOVERY_S = 10.0


class Stack:
    """The processes, up while the context is entered.

    `paces` are the times of an engine step in ms; the sim engine takes exactly one.
    """

    def __init__(
        self,
        folder: Path,
        engine: EngineKind,
        paces: Sequence[int],
        paths: Sequence[plans.Path] = tuple(plans.Path),
    ) -> None:
        self._processes = Processes(folder)
        self._kind = engine
        self._paces = paces
        self._paths = paths
        self._doors: dict[str, list[proxies.Door]] = {}
        self._lean = ""
        self._http = ""

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

    async def _start(self) -> None:
        processes = self._processes
        auth = await processes.auth(_CALLERS)
        reach = {"AUTH_TARGET": auth, "MAX_CONCURRENT_RPCS": _MANY}
        engine = await self._engine(reach)
        router = await processes.service(
            "router",
            "services.router",
            "ANABRANCH_ROUTER_",
            reach
            | {
                "REGISTRY": f"static:anabranch-engine={engine}",
                "CLIENT_ID": "router",
                "CLIENT_SECRET_FILE": str(processes.secrets / "router"),
            },
        )
        await self._until_model(router)
        wanted = {path.proxy for path in self._paths}
        for name, binary, recipe in (
            ("envoy", proxies.find_envoy(), proxies.envoy),
            ("nginx", proxies.find_nginx(), proxies.nginx),
        ):
            if binary and name in wanted:
                doors = [proxies.Door("plain", free_address(), engine)]
                if self._lean:
                    doors.append(proxies.Door("lean", free_address(), self._lean))
                await processes.launch(recipe(binary, processes.folder, doors))
                self._doors[name] = doors
        if self._http:
            await self._gateways(wanted)

    async def _gateways(self, wanted: set[str]) -> None:
        """The installed ones of those wanted, each until it answers."""
        folder = self._processes.folder
        if "litellm" in wanted and gateways.installed(gateways.LITELLM):
            await self._gateway(gateways.litellm(folder, free_address(), self._http))
        if not gateways.installed(gateways.SMG):
            return
        if "smg" in wanted:
            url = f"http://{self._http}"
            await self._gateway(gateways.smg("smg", folder, free_address(), url, free_address()))
        if "smg-grpc" in wanted:
            worker = gateways.smg_worker(folder, free_address())
            await self._processes.launch(worker)
            url = f"grpc://{worker.address}"
            await self._gateway(
                gateways.smg("smg-grpc", folder, free_address(), url, free_address())
            )

    async def _gateway(self, spec: ProcessSpec) -> None:
        await self._processes.launch(spec)
        await openai_probe.until_answering(self._processes.running(spec.name), self._paces[0])

    async def _engine(self, reach: Mapping[str, str]) -> str:
        if self._kind == "fake":
            self._lean, self._http = free_address(), free_address()
            paces = {
                "PACES": ",".join(str(pace) for pace in self._paces),
                "LEAN_LISTEN": self._lean,
                "OPENAI_LISTEN": self._http,
            }
            return await self._processes.service(
                "engine", "bench.dataplane.fake_engine", FAKE_PREFIX, {**reach, **paces}
            )
        (pace,) = self._paces
        settings = {
            "ENGINE": "sim",
            "SERVED_MODEL_NAME": model_name(pace),
            "STEP_MODEL": f"{(pace or 1) * 1000},0,0,0",
            "SIM_SPEED": "1" if pace else "0",
            "MAX_NUM_SEQS": _MANY,
            "MAX_WAITING": _MANY,
            "MAX_NUM_BATCHED_TOKENS": "10000000",
            "SIM_KV_TOKENS": "100000000",
        }
        return await self._processes.service(
            "engine", "services.local_engine", "ANABRANCH_ENGINE_", {**reach, **settings}
        )

    async def _until_model(self, router: str) -> None:
        """Waits until the router has found the engine."""
        metadata = (("authorization", await self.authorization()),)
        deadline = time.monotonic() + _DISCOVERY_S
        async with grpc.aio.insecure_channel(router) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            while True:
                answer = await stub.ListModels(
                    model_pb2.ListModelsRequest(), metadata=metadata, timeout=5.0
                )
                if answer.models:
                    return
                if time.monotonic() > deadline:
                    raise ClusterError("the router did not find the engine")
                await asyncio.sleep(0.05)

    def absent(self) -> set[plans.Path]:
        """Paths that cannot be taken.

        A proxy is not installed, an engine has no lean and no HTTP door, or a direct path has no
        gateway that it could be held against, though one was wanted.
        """
        gone = {
            path
            for path in plans.Path
            if (path.proxy and path.proxy not in self._processes)
            or (path.form is plans.Form.LEAN and not self._lean)
            or (path.form is plans.Form.HTTP and not self._http)
        }
        behind = {path for path in self._paths if path.form is plans.Form.HTTP and path.proxy}
        if behind and behind <= gone:
            gone.add(plans.Path.DIRECT_HTTP)
        return gone

    def target(self, path: plans.Path) -> str:
        """host:port that callers of this path call."""
        if path.proxy in self._doors:
            return self._doors[path.proxy][path.form is plans.Form.LEAN].address
        if path.form is plans.Form.LEAN:
            return self._lean
        if path is plans.Path.DIRECT_HTTP:
            return self._http
        return self._processes.address(path.proxy or "engine")

    def proxy_pids(self, path: plans.Path) -> list[int]:
        """The process tree between caller and engine; none on a direct path."""
        return self._processes.pids(path.proxy) if path.proxy else []

    def engine_pids(self, path: plans.Path = plans.Path.ROUTER_SESSION) -> list[int]:
        """The process tree of the engine at this path's end."""
        engine = "smg-worker" if path is plans.Path.SMG_GRPC else "engine"
        return self._processes.pids(engine)

    async def authorization(self, client_id: str = "demo") -> str:
        """A credential of a caller, with minutes of life left."""
        return await self._processes.authorization(client_id)
