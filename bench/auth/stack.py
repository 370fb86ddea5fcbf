"""The processes of a run: replicas of auth on one database, and an administrator who calls them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import auth_pb2_grpc
from bench.processes import Processes
from tools import identities

T = TypeVar("T")

TENANT = "bench"
_FRESH_FOR_S = 60.0
_AT_ONCE = 8
_TIMEOUT_S = 30.0
_MANY = "1000000000"
"""Failed logins in a row that are no obstacle: it is not the throttle that is measured."""


class Replicas:
    """Auth processes over one database: SQLite in the folder, or one with a URL."""

    def __init__(self, processes: Processes, database_url: str = "") -> None:
        self.processes = processes
        folder = processes.folder
        self._settings = {
            "DATA_DIR": str(folder / "auth"),
            "BOOTSTRAP_SECRET_FILE": str(processes.secrets / identities.ADMIN),
            "LOGIN_BURST": _MANY,
        }
        if database_url:
            for name, text in (
                ("DATABASE_URL", database_url),
                ("KEY_ENCRYPTION_SECRET", secrets.token_hex(32)),
            ):
                file = processes.secrets / name.lower()
                identities.write_private(file, text + "\n")
                self._settings[f"{name}_FILE"] = str(file)

    async def start(self, name: str, module: str = "services.auth", *arguments: str) -> str:
        """Starts one, or one of this name anew; its address. Raises ClusterError."""
        if name in self.processes:
            await self.processes.running(name).end()
        return await self.processes.service(
            name, module, "ANABRANCH_AUTH_", self._settings, arguments
        )

    def pids(self, name: str) -> list[int]:
        """The processes of one."""
        return self.processes.pids(name)

    @asynccontextmanager
    async def administrator(self, name: str) -> AsyncIterator[Administrator]:
        """The first administrator, at one of them."""
        secret = (self.processes.secrets / identities.ADMIN).read_text(encoding="utf-8").strip()
        options = [("grpc.enable_http_proxy", 0)]
        address = self.processes.address(name)
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield Administrator(auth_pb2_grpc.AuthServiceStub(channel), secret)


class Administrator:
    """Makes clients and keys, ends them, and logs clients in."""

    def __init__(self, stub: auth_pb2_grpc.AuthServiceStub, secret: str) -> None:
        self.stub: Any = stub
        self._secret = secret
        self._token, self._since = "", float("-inf")
        self._lock = asyncio.Lock()

    async def clients(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Makes clients; ids and secrets."""

        async def one(name: str) -> tuple[str, str]:
            request = pb.CreateClientRequest(client_id=name, tenant=TENANT, scopes=["generate"])
            made = await self.asks(self.stub.CreateClient, request)
            return name, str(made.client_secret)

        return await _several(one, names)

    async def keys(self, client_id: str, count: int) -> list[str]:
        """Makes API keys of a client."""

        async def one(_: int) -> str:
            request = pb.CreateApiKeyRequest(client_id=client_id)
            return str((await self.asks(self.stub.CreateApiKey, request)).api_key)

        return await _several(one, range(count))

    async def tokens(self, logins: Sequence[tuple[str, str]]) -> list[str]:
        """Logs clients in; their tokens."""

        async def one(login: tuple[str, str]) -> str:
            return await self.login(*login)

        return await _several(one, logins)

    async def login(self, client_id: str, client_secret: str) -> str:
        """A token for client credentials."""
        request = pb.IssueTokenRequest(client_id=client_id, client_secret=client_secret)
        return str((await self.stub.IssueToken(request, timeout=_TIMEOUT_S)).access_token)

    async def asks(self, call: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """Calls with the administrator's own credential."""
        async with self._lock:
            if time.monotonic() - self._since > _FRESH_FOR_S:
                self._token = await self.login(identities.ADMIN, self._secret)
                self._since = time.monotonic()
        metadata = (("authorization", f"Bearer {self._token}"),)
        return await call(request, metadata=metadata, timeout=_TIMEOUT_S)


async def _several(work: Callable[[Any], Awaitable[T]], items: Sequence[Any]) -> list[T]:
    """The results in the order of the items, few of them under way at once."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(item: Any) -> T:
        async with places:
            return await work(item)

    return await asyncio.gather(*(one(item) for item in items))


@asynccontextmanager
async def replicas(folder: Path, database_url: str = "") -> AsyncIterator[Replicas]:
    """None runs yet; all have ended when the block is left."""
    async with Processes(folder) as processes:
        yield Replicas(processes, database_url)
