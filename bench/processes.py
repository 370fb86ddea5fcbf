"""Starts and ends the processes of a benchmark: auth with its callers, services, anything else.

Real processes, as tools/cluster starts them; the registry is a static list, since Consul is not on
the data path. What is started, and how it is measured, is each benchmark's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from anabranch.v1 import auth_pb2, auth_pb2_grpc
from bench import cpu
from bench.python_path import python_path
from tools import identities
from tools.cluster import health
from tools.cluster.ports import HOST, free_port
from tools.cluster.process import ProcessSpec, Running

_FRESH_FOR_S = 60.0
"""Age up to which an access token is used again; its life is five times that."""


def free_address() -> str:
    """host:port that nobody uses now."""
    return f"{HOST}:{free_port()}"


class Processes:
    """Processes by name, ended in reverse order when the context is left.

    Every method that starts something raises ClusterError when it does not serve.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.secrets = self.folder / "secrets"
        self._running: dict[str, Running] = {}
        self._stack = AsyncExitStack()
        self._callers: dict[str, str] = {}
        self._tokens: dict[str, tuple[str, float]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._running

    async def __aenter__(self) -> Self:
        self.secrets.mkdir(parents=True, exist_ok=True)
        self.secrets.chmod(0o700)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def running(self, name: str) -> Running:
        """A process that was started."""
        return self._running[name]

    def address(self, name: str) -> str:
        """host:port where it serves."""
        return self._running[name].spec.address

    def pids(self, name: str) -> list[int]:
        """It and everything that it has started."""
        return cpu.tree(self._running[name].record.pid)

    async def auth(self, callers: Sequence[identities.Identity]) -> str:
        """Starts auth and creates the callers in it; its address."""
        bootstrap = {
            "DATA_DIR": str(self.folder / "auth"),
            "BOOTSTRAP_SECRET_FILE": str(self.secrets / identities.ADMIN),
        }
        address = await self.service("auth", "services.auth", "ANABRANCH_AUTH_", bootstrap)
        self._callers = await identities.create(address, self.secrets, callers)
        return address

    async def service(
        self,
        name: str,
        module: str,
        prefix: str,
        settings: Mapping[str, str],
        arguments: Sequence[str] = (),
        *,
        start_timeout: float = 120.0,
        drain: float = 6.0,
    ) -> str:
        """Starts a service on free ports; its address. `settings` are without prefix, times in
        seconds."""
        address, http = free_address(), free_address()
        common = {"LISTEN": address, "HTTP_LISTEN": http, "SERVICE_ID": name, "DRAIN_TIMEOUT": "1"}
        given = {"REGISTRY": "none", **common, **settings}
        spec = ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", module, *arguments),
            env={"PYTHONPATH": python_path()} | {prefix + key: given[key] for key in given},
            probe="grpc",
            address=address,
            http=http,
            start_timeout=start_timeout,
            drain=drain,
        )
        await self.launch(spec)
        return address

    async def launch(self, spec: ProcessSpec) -> None:
        """Starts a process and waits until it serves; one of this name before it has ended."""
        running = Running(spec, self.folder, detached=False)
        self._running[spec.name] = running
        self._stack.push_async_callback(running.end)
        await health.until_serving(running)

    async def authorization(self, client_id: str = "demo") -> str:
        """A credential of a caller, with minutes of life left."""
        token, since = self._tokens.get(client_id, ("", float("-inf")))
        if time.monotonic() - since < _FRESH_FOR_S:
            return token
        async with grpc.aio.insecure_channel(self.address("auth")) as channel:
            answer = await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(
                auth_pb2.IssueTokenRequest(
                    client_id=client_id, client_secret=self._callers[client_id]
                ),
                timeout=10.0,
            )
        token = f"Bearer {answer.access_token}"
        self._tokens[client_id] = (token, time.monotonic())
        return token
