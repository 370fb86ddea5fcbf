"""A real auth service under a clock that a test turns, and a second process's view of it.

For tests that are no coroutines themselves: the loop stands still between their steps.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import grpc

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from anabranch.v1.auth_pb2_grpc import AuthServiceStub
from services.auth.app import running
from services.auth.settings import Settings
from services.chassis.auth_client import AuthClient
from services.chassis.authn import Verifier
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.principal import Principal
from tests.support.auth import ISSUER, bearer
from tests.support.waiting import BOUND_S

T = TypeVar("T")
BEGINNING = 2_000_000_000.0
"""No year that a machine's clock shows: whoever looks at another clock than ours is found out."""

PUBLISH_AHEAD = 120.0


class Scene:
    """The service, its administrator, a follower that is told of everything through GetJwks."""

    def __init__(self) -> None:
        self.now = BEGINNING
        self._directory = tempfile.TemporaryDirectory(prefix="anabranch-auth-")
        self._runner = asyncio.Runner()
        self._admin: tuple[str, float] = ("", 0.0)
        self.admin_logins = 0
        # How dear a hash is, is nothing that these tests are about.
        self._cheap = mock.patch.multiple("services.auth.passwords", _MEMORY_KIB=8, _PASSES=1)
        self._cheap.start()
        self.settings = Settings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            registry="none",
            data_dir=Path(self._directory.name),
            bootstrap_secret_file=Path(self._directory.name) / "secret",
            drain_timeout=0.1,
            rotation_publish_ahead=PUBLISH_AHEAD,
            refresh_period=0.2,
            login_burst=1_000_000,
        )
        self.run(self._start())
        self.admin_secret = (Path(self._directory.name) / "secret").read_text().strip()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """One step of the test."""

        async def bounded() -> T:
            async with asyncio.timeout(2 * BOUND_S):
                return await work

        return self._runner.run(bounded())

    async def _start(self) -> None:
        self._stop = asyncio.Event()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # One task enters and leaves what has task groups in it.
        self._serving = asyncio.create_task(self._serve(ready))
        await asyncio.wait([ready, self._serving], return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            self._serving.result()

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(running(self.settings, clock=self.clock))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(host.address))
            self.stub = AuthServiceStub(channel)
            source = AuthClient(host.address, None)
            stack.push_async_callback(source.close)
            await source.follow()
            self.follower = Verifier(
                source, issuer=ISSUER, audience="anabranch", clock=self.clock, exchange=source
            )
            stack.push_async_callback(self.follower.close)
            following = asyncio.create_task(self.follower.keep_fresh())
            self.own = host.verifier
            for verifier in (self.own, self.follower):
                assert await seen_by(verifier, "nothing") is None
            ready.set_result(None)
            await self._stop.wait()
            following.cancel()
            await asyncio.wait([following])

    async def _end(self) -> None:
        self._stop.set()
        await self._serving

    def clock(self) -> float:
        """The time of the service and of the follower."""
        return self.now

    def restart(self) -> None:
        """Another process on the same files."""
        self.run(self._end())
        self.run(self._start())

    def close(self) -> None:
        """Ends everything and removes the files."""
        try:
            self.run(self._end())
        finally:
            self._cheap.stop()
            self._runner.close()
            self._directory.cleanup()

    async def admin(self) -> list[tuple[str, str]]:
        """The administrator's credential."""
        token, until = self._admin
        if self.now >= until:
            request = pb.IssueTokenRequest(client_id="admin", client_secret=self.admin_secret)
            token = (await self.stub.IssueToken(request)).access_token
            self._admin = token, self.now + 60
            self.admin_logins += 1
        return bearer(token)

    async def as_admin(self, method: str, request: Any) -> Any:
        """The answer, or the reason of the refusal."""
        return await answer(getattr(self.stub, method)(request, metadata=await self.admin()))


async def seen_by(verifier: Verifier, credential: str) -> Principal | None:
    """What a service makes of a credential; None when it refuses it."""
    try:
        return await verifier.verify(credential)
    except Fault as fault:
        if fault.reason != errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
            raise
        return None


async def answer(call: Awaitable[Any]) -> Any:
    """A call's answer, or the name of the reason why there is none."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        fault = fault_from_rpc_error(error)
        if fault.reason in (errors_pb2.ERROR_REASON_UNSPECIFIED, errors_pb2.ERROR_REASON_INTERNAL):
            raise
        return errors_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_")
