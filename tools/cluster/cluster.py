"""A whole cluster of real processes: Consul, auth, engines, the cloud proxy and the router.

    async with Cluster(run_dir, engines=[EngineSpec()], ports=Ports.free()) as cluster:
        cluster.router      # host:port to call
        cluster.credentials # client id → secret

Tests reach into it by process name: kill, pause, restart, add_engine. It heals nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from anabranch.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from tools import identities
from tools.cluster import health, state
from tools.cluster.ports import free_port, is_free
from tools.cluster.process import ClusterError, ProcessSpec, Running
from tools.cluster.recipes import ROOT, EngineKind, EngineSpec, Ports, Recipes, at


class Cluster:
    """Starts and stops the processes. Identities are new at every start."""

    def __init__(
        self,
        run_dir: Path,
        *,
        engines: Sequence[EngineSpec] = (EngineSpec(),),
        cloud: bool = True,
        ports: Ports | None = None,
        detached: bool = False,
        log_level: str = "info",
        router_workers: int = 1,
        router_settings: Mapping[str, str] | None = None,
        others_settings: Mapping[str, Mapping[str, str]] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`ports` None means free ones. `detached`: the processes outlive this program.
        `router_settings` adds to or overrides ANABRANCH_ROUTER_*, without prefix; `others_settings`
        does so for the processes `auth` and `cloud`.

        `tell` gets a line at every step. `run_dir` holds logs, state and secrets.
        """
        self.run_dir = run_dir.resolve()
        self.logs = self.run_dir / "logs"
        self.secrets = self.run_dir / "secrets"
        self.ports = ports or Ports.free()
        self.credentials: dict[str, str] = {}
        self.processes: dict[str, Running] = {}
        self._engines = tuple(engines)
        self._cloud = cloud
        self._detached = detached
        self._log_level = log_level
        self._router_workers = router_workers
        self._router_settings = dict(router_settings or {})
        self._others_settings = dict(others_settings or {})
        self._tell = tell
        self._recipes: Recipes | None = None

    @property
    def router(self) -> str:
        """host:port of the router."""
        return at(self.ports.router[0])

    @property
    def auth(self) -> str:
        """host:port of auth."""
        return at(self.ports.auth[0])

    @property
    def consul(self) -> str:
        """host:port of Consul's HTTP API."""
        return at(self.ports.consul)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts everything and returns when all of it serves and the router sees its backends.

        Raises ClusterError, after stopping whatever it had started.
        """
        self._prepare()
        try:
            await self._start_all()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    def _prepare(self) -> None:
        if any(record.members() for record in state.load(self.run_dir)):
            raise ClusterError(f"a cluster is running already in {self.run_dir}")
        taken = [
            f"{port} ({who})" for who, port in self.ports.numbers().items() if not is_free(port)
        ]
        if taken:
            raise ClusterError(
                "these ports are in use: " + ", ".join(taken) + ". Stop what listens there, or "
                "start on free ports: python -m tools.cluster up --ephemeral"
            )
        for folder in (self.logs, self.secrets, self.run_dir / "auth"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.secrets.chmod(0o700)
        binary, version = find_consul()
        self._recipes = Recipes(
            self.run_dir,
            self.ports,
            binary,
            version,
            self._log_level,
            self._router_workers,
            self._router_settings,
            self._others_settings,
        )

    @property
    def recipes(self) -> Recipes:
        """What the processes are started with."""
        if self._recipes is None:
            raise ClusterError("the cluster has not been started")
        return self._recipes

    async def _start_all(self) -> None:
        recipes = self.recipes
        await self.launch(recipes.consul())
        await self.launch(recipes.auth())
        try:
            self.credentials = await identities.create(self.auth, self.secrets)
        except identities.IdentityError as error:
            raise ClusterError(str(error)) from error
        identities.save(self.run_dir, self.credentials, self.router, self.auth)
        together = [
            recipes.engine(engine, self.ports.engine if number == 0 else _free_pair())
            for number, engine in enumerate(self._engines)
        ]
        if self._cloud:
            # Only real models overflow: what the simulated engine says exists nowhere else.
            real = [engine for engine in self._engines if engine.kind is EngineKind.VLLM]
            recipes.write_offer(tuple({engine.model for engine in real or self._engines}))
            await self.launch(recipes.provider())
            together.append(recipes.cloud())
        together.append(recipes.router())
        try:
            async with asyncio.TaskGroup() as group:
                for spec in together:
                    group.create_task(self.launch(spec), name=spec.name)
        except* ClusterError as failures:
            # The first to fail says why; the others were given up because of it.
            raise failures.exceptions[0] from None
        await self.until_backends(len(self._engines) + self._cloud)

    async def launch(self, spec: ProcessSpec) -> Running:
        """Starts one more process, which the cluster then owns; returns when it serves."""
        started = time.monotonic()
        running = Running(spec, self.logs, detached=self._detached)
        self.processes[spec.name] = running
        self._save()
        await health.until_serving(running)
        self._tell(f"{spec.name} serves on {spec.address} ({time.monotonic() - started:.1f} s)")
        return running

    def _save(self) -> None:
        state.save(self.run_dir, [running.record for running in self.processes.values()])

    async def stop(self) -> list[str]:
        """Ends every process in order; the names of those that needed force."""
        records = [running.record for running in self.processes.values()]
        forced = await state.stop(records)
        for running in self.processes.values():
            await running.wait(5.0)
        self.processes.clear()
        state.save(self.run_dir, [])
        return forced

    async def add_engine(self, engine: EngineSpec) -> Running:
        """Starts one more engine; returns when it serves, which is before the router knows it."""
        return await self.launch(self.recipes.engine(engine, _free_pair()))

    async def kill(self, name: str) -> None:
        """SIGKILL to the process and all it has started."""
        await self.processes[name].kill()

    async def end(self, name: str) -> int:
        """Ends one process in order (SIGTERM); its exit status."""
        await self.processes[name].end()
        return await self.processes[name].wait(5.0)

    async def restart(self, name: str) -> Running:
        """Starts a process again as it was, after ending it if it runs."""
        await self.processes[name].end()
        return await self.launch(self.processes[name].spec)

    def pause(self, name: str) -> None:
        """Stops the process in its tracks (SIGSTOP): alive, silent."""
        self.processes[name].record.send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Lets a paused process go on."""
        self.processes[name].record.send(signal.SIGCONT)

    async def token(self, client_id: str) -> str:
        """A fresh access token of one of the cluster's identities."""
        async with grpc.aio.insecure_channel(self.auth) as channel:
            answer = await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(
                auth_pb2.IssueTokenRequest(
                    client_id=client_id, client_secret=self.credentials[client_id]
                ),
                timeout=30.0,
            )
        return str(answer.access_token)

    async def backends(self) -> list[admin_pb2.BackendStatus]:
        """What the router knows. Raises grpc.aio.AioRpcError."""
        token = await self.token(identities.ADMIN)
        async with grpc.aio.insecure_channel(self.router) as channel:
            answer = await admin_pb2_grpc.RouterAdminServiceStub(channel).ListBackends(
                admin_pb2.ListBackendsRequest(),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=30.0,
            )
        return list(answer.backends)

    async def until_backends(self, count: int, timeout: float = 60.0) -> None:
        """Waits until the router has exactly `count` ready backends, `timeout` s at most."""
        deadline = time.monotonic() + timeout
        seen = "nothing"
        while time.monotonic() < deadline:
            try:
                found = await self.backends()
            except grpc.aio.AioRpcError as error:
                seen = f"{error.code().name}: {error.details()}"
            else:
                ready = [b for b in found if b.state == admin_pb2.BACKEND_STATE_READY]
                if len(ready) == count:
                    return
                names = (f"{b.backend_id} {admin_pb2.BackendState.Name(b.state)}" for b in found)
                seen = ", ".join(names) or "no backend"
            await asyncio.sleep(0.1)
        raise ClusterError(
            f"the router did not come to {count} ready backends in {timeout:.0f} s; it has: {seen}"
        )


def _free_pair() -> tuple[int, int]:
    return free_port(), free_port()


def find_consul() -> tuple[str, tuple[int, ...]]:
    """The Consul binary, the one on PATH first, and its version. Raises ClusterError."""
    binary = shutil.which("consul") or shutil.which("consul", path=str(ROOT / ".tools/bin"))
    if binary is None:
        raise ClusterError("there is no Consul: run `make consul`, or put `consul` on PATH")
    try:
        done = subprocess.run(
            [binary, "version"], check=True, capture_output=True, text=True, timeout=20
        )
        first = done.stdout.split()[1]
        version = tuple(
            int(part) for part in first.lstrip("v").split("-")[0].split("+")[0].split(".")
        )
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        raise ClusterError(f"{binary} does not tell its version: {error}") from error
    return binary, version
