"""The processes of a run: each path's own, and the callers'. It starts and ends them and passes
orders on; what is measured when is measure.py's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path as FilePath
from types import TracebackType
from typing import Self

import grpc

from anabranch.v1 import model_pb2, model_pb2_grpc
from bench import cpu
from bench.engine import arguments, figures, prompts
from bench.engine.flight import CancelOrder, Order, answered
from bench.engine.plan import MODEL, Path, Plan
from bench.engine.worker import Worker
from bench.processes import Processes, free_address
from bench.python_path import python_path
from tools import identities
from tools.cluster.process import ClusterError, ProcessSpec

_START_S = 420.0
_LOOK_S = 330.0
_FOUND_S = 20.0
_LEAD_S = 0.2
"""From an order to its begin, so that all callers begin together."""

_MANY = "20000"
_HTTP_FORMS = {Path.SERVE: "http"}


class Contenders:
    """The processes, ended when the context is left. An engine is up between `start` and `end`.

    What it starts and asks raises ClusterError or WorkerLost where it fails.
    """

    def __init__(self, folder: FilePath, plan: Plan, vocabulary: int) -> None:
        self._folder = folder
        self._plan = plan
        self._vocabulary = vocabulary
        self._stack = AsyncExitStack()
        self._engines: dict[str, AsyncExitStack] = {}
        self._processes: dict[str, Processes] = {}
        self._inside: dict[str, Worker] = {}
        self._clients: list[Worker] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async with self._stack:
            for engine in tuple(self._engines):
                await self.end(engine)

    async def start(self, engine: str) -> None:
        """Starts what a path ends in, and the router in front of it where that is a path."""
        async with AsyncExitStack() as stack:
            if engine in (Path.OFFLINE.value, Path.ASYNC.value):
                await self._start_inside(stack, engine)
            else:
                processes = await stack.enter_async_context(Processes(self._folder / engine))
                self._processes[engine] = processes
                if engine == Path.SERVE.value:
                    await self._start_serve(processes)
                else:
                    await self._start_ours(processes)
            self._engines[engine] = stack.pop_all()

    async def end(self, engine: str) -> None:
        """Ends it; nothing happens where it is not up."""
        stack = self._engines.pop(engine, None)
        if stack is not None:
            await stack.aclose()

    async def look(self, path: Path, streams: int, seed: str, tokens: int) -> figures.Sample:
        """Asks once with so many streams, and says what came."""
        plan = self._plan
        callers = plan.callers(path, streams)
        asked = [
            prompts.prompts(f"{seed}-{wave}", streams, plan.prompt_tokens, self._vocabulary)
            for wave in range(self._plan.waves(streams))
        ]
        if path is Path.OFFLINE and streams == plan.slots:
            # No caller waits for an answer there: all that is asked lies in vLLM's own queue.
            asked = [[prompt for wave in asked for prompt in wave]]
        pids = self._pids(path)
        if callers:
            await self._have_clients(callers)
            orders = await self._orders(path, asked, callers, tokens)
            workers = self._clients[:callers]
        else:
            orders = [Order(path.value, MODEL, tokens, asked)]
            workers = [self._inside[path.engine]]
        before, busy, since = cpu.seconds(pids), cpu.machine_busy(), time.monotonic()
        answers = await asyncio.gather(
            *(
                worker.ask(order.to_json(), _LOOK_S)
                for worker, order in zip(workers, orders, strict=True)
            )
        )
        elapsed = time.monotonic() - since
        server, busy = cpu.seconds(pids) - before, cpu.machine_busy() - busy
        known = [answered(answer) for answer in answers]
        found = figures.sample(known, plan.objective, tokens)
        if callers:
            found["generator_seconds"] = sum(answer.cpu_seconds for answer in known)
        return found | figures.costs(
            found, server, elapsed, busy, callers=bool(callers), cores=os.cpu_count() or 1
        )

    async def cancel(self, path: Path, seed: str) -> dict[str, float]:
        """Cancels running streams, and says when their slots were free; see cancelling.py."""
        plan = self._plan
        await self._have_clients(1)
        order = CancelOrder(
            form=_HTTP_FORMS.get(path, "session"),
            model=MODEL,
            tokens=plan.model.max_model_len - plan.prompt_tokens - 8,
            prompts=prompts.prompts(seed, plan.slots + 1, plan.prompt_tokens, self._vocabulary),
            target=self._target(path),
            authorization=await self._authorization(path),
            metrics=self._target(path),
        )
        return await self._clients[0].ask(order.to_json(), _LOOK_S)

    async def _orders(
        self, path: Path, asked: list[list[list[int]]], callers: int, tokens: int
    ) -> list[Order]:
        authorization = await self._authorization(path)
        at = time.monotonic() + _LEAD_S
        return [
            Order(
                form=_HTTP_FORMS.get(path, "session"),
                model=MODEL,
                tokens=tokens,
                waves=[wave[caller::callers] for wave in asked],
                target=self._target(path),
                authorization=authorization,
                at=at,
            )
            for caller in range(callers)
        ]

    async def _authorization(self, path: Path) -> str:
        if path is Path.SERVE:
            return ""
        return await self._processes[path.engine].authorization()

    def _target(self, path: Path) -> str:
        return self._processes[path.engine].address(path.value)

    def _pids(self, path: Path) -> list[int]:
        if not path.remote:
            return cpu.tree(self._inside[path.engine].pid)
        processes = self._processes[path.engine]
        names = (Path.SESSION, Path.ROUTER) if path is Path.ROUTER else (path,)
        return [pid for name in names for pid in processes.pids(name.value)]

    async def _have_clients(self, count: int) -> None:
        while len(self._clients) < count:
            name = f"client-{len(self._clients) + 1}"
            client = Worker.running(name, "bench.engine.client", self._folder)
            self._clients.append(await self._stack.enter_async_context(client))

    async def _start_inside(self, stack: AsyncExitStack, engine: str) -> None:
        worker = await stack.enter_async_context(
            Worker.running(engine, "bench.engine.inside", self._folder, engine)
        )
        order = {
            "kind": "load-model",
            "arguments": arguments.vllm_arguments(self._plan),
            "environment": arguments.environment(self._plan),
        }
        await worker.ask(order, _START_S)
        self._inside[engine] = worker

    async def _start_serve(self, processes: Processes) -> None:
        address = free_address()
        host, _, port = address.rpartition(":")
        await processes.launch(
            ProcessSpec(
                name=Path.SERVE.value,
                argv=(
                    # What `vllm serve` runs; that command itself does not start where vLLM is
                    # installed under another name, as for CPUs.
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                    *arguments.command_line(arguments.vllm_arguments(self._plan)),
                    *("--served-model-name", MODEL, "--host", host, "--port", port),
                    # A line for each request would be the terminal's cost, not the server's.
                    *("--uvicorn-log-level", "warning"),
                ),
                env={
                    "PYTHONPATH": python_path(),
                    "VLLM_NO_USAGE_STATS": "1",
                    "HF_HUB_OFFLINE": "1",
                    **arguments.environment(self._plan),
                },
                probe="http",
                address=address,
                start_timeout=_START_S,
                drain=20.0,
            )
        )

    async def _start_ours(self, processes: Processes) -> None:
        auth = await processes.auth(identities.IDENTITIES)
        reach = {"AUTH_TARGET": auth, "MAX_CONCURRENT_RPCS": _MANY}
        engine = await processes.service(
            Path.SESSION.value,
            "services.local_engine",
            "ANABRANCH_ENGINE_",
            {**reach, **arguments.engine_settings(self._plan)},
            start_timeout=_START_S,
            drain=30.0,
        )
        if Path.ROUTER not in self._plan.paths:
            return
        router = await processes.service(
            Path.ROUTER.value,
            "services.router",
            "ANABRANCH_ROUTER_",
            {
                **reach,
                "REGISTRY": f"static:anabranch-engine={engine}",
                "CLIENT_ID": "router",
                "CLIENT_SECRET_FILE": str(processes.secrets / "router"),
            },
        )
        await _until_model(router, await processes.authorization())


async def _until_model(router: str, authorization: str) -> None:
    """Waits until the router has found the engine."""
    metadata = (("authorization", authorization),)
    deadline = time.monotonic() + _FOUND_S
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
