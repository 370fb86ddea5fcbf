"""A running cloud proxy in front of a provider simulator, and ways to ask it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1.model_pb2_grpc import ModelServiceStub
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.settings import Secret
from services.cloud_proxy.app import running
from services.cloud_proxy.settings import Settings
from tests.support.auth import bearer
from tests.support.local_keys import LocalKeys
from tests.support.provider import KEY, Provider, routes_file, simulator
from tests.support.waiting import BOUND_S


class Proxy:
    """The proxy, its provider, and a stub with a credential."""

    def __init__(self, stub: Any, provider: Provider, host: Any, keys: LocalKeys) -> None:
        self.stub = stub
        self.provider = provider
        self.host = host
        self.keys = keys
        self.metadata = bearer(keys.token("generate"))

    async def answer(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """The whole answer. Raises Fault."""
        try:
            answer: pb.GenerateResponse = await self.stub.Generate(
                request, metadata=self.metadata, timeout=BOUND_S
            )
        except grpc.aio.AioRpcError as error:
            raise fault_from_rpc_error(error) from None
        return answer

    async def chunks(self, request: pb.GenerateRequest) -> tuple[list[pb.GenerateChunk], Any]:
        """Every chunk, and the Fault that ended the stream or None."""
        got: list[pb.GenerateChunk] = []
        call = self.stub.StreamGenerate(request, metadata=self.metadata, timeout=BOUND_S)
        ended: Fault | None = None
        try:
            async for chunk in call:
                got.append(chunk)
        except grpc.aio.AioRpcError as error:
            ended = fault_from_rpc_error(error)
        finally:
            call.cancel()
        return got, ended

    async def metric(self, name: str) -> list[float]:
        """The values of a metric, one for each set of its labels."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.host.http_address}/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        own = (f"{name}{{", f"{name} ")
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(own)]


def ask(text: str = "hello", model: str = "cloud-chat", **fields: Any) -> pb.GenerateRequest:
    """A request with one user message."""
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.GenerateRequest(model=model, messages=[message], **fields)


@asynccontextmanager
async def cloud_proxy(
    tmp_path: Path,
    *,
    url: str = "",
    keys: str = f"simulator={KEY}",
    accepted: tuple[str, ...] = (KEY,),
    token_delay: float = 0.0,
    routes: dict[str, dict[str, Any]] | None = None,
    epoch_clock: Callable[[], float] = time.time,
    **changes: Any,
) -> AsyncIterator[Proxy]:
    """A simulator and a proxy in this process, on free ports. `url` replaces the simulator's."""
    local = LocalKeys()
    async with simulator(*accepted, token_delay=token_delay) as provider:
        settings = Settings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            drain_timeout=2.0,
            models_file=routes_file(tmp_path, url or provider.url, **(routes or {})),
            api_keys=Secret(keys),
            **changes,
        )
        async with (
            running(settings, key_source=local, epoch_clock=epoch_clock) as host,
            grpc.aio.insecure_channel(host.address) as channel,
        ):
            yield Proxy(ModelServiceStub(channel), provider, host, local)
