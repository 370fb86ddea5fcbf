"""Each implementation of ModelService, running in this process, seen only through the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc
from services.chassis.channels import open_channel
from tests.support.auth import bearer
from tests.support.cloud import cloud_proxy
from tests.support.inprocess import cluster
from tests.support.provider import KEY
from tests.support.waiting import BOUND_S

# What each dialect is asked by: a provider's profile and a model. What the simulator is not told by
# a profile is stated by the route.
CLOUD: dict[str, dict[str, Any]] = {
    "openai_chat": {"provider": "simulator", "model": "sim-chat"},
    "anthropic": {"provider": "anthropic", "model": "sim-claude", "max_output": 4096},
    "gemini": {"provider": "gemini", "model": "sim-gemini"},
    "ollama": {"provider": "ollama", "model": "sim-llama"},
    "bedrock_converse": {"provider": "bedrock", "model": "sim.nova-v1:0"},
}
AWS_KEY = "AKIDSIMULATOR:secret+of/the=simulator"


@dataclass
class Service:
    """One implementation: a stub, a credential, and the model to ask for."""

    stub: Any
    metadata: Any
    model: str

    def request(self, text: str = "Tell me of the river.", **fields: Any) -> pb.GenerateRequest:
        message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
        return pb.GenerateRequest(model=self.model, messages=[message], **fields)

    async def stream(self, request: pb.GenerateRequest) -> list[pb.GenerateChunk]:
        call = self.stub.StreamGenerate(request, metadata=self.metadata, timeout=BOUND_S)
        return [chunk async for chunk in call]

    async def whole(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        answer: pb.GenerateResponse = await self.stub.Generate(
            request, metadata=self.metadata, timeout=BOUND_S
        )
        return answer


@asynccontextmanager
async def service(kind: str, directory: Path) -> AsyncIterator[Service]:
    """Of a kind: "engine", "router" (before an engine), or one of the cloud's dialects."""
    if kind in CLOUD:
        entry = CLOUD[kind]
        keys = f"simulator={KEY} anthropic={KEY} gemini={KEY} bedrock={AWS_KEY}"
        async with cloud_proxy(
            directory, routes={"cloud": entry}, keys=keys, accepted=(KEY, AWS_KEY), warm=False
        ) as proxy:
            yield Service(proxy.stub, proxy.metadata, "cloud")
        return
    async with cluster(directory) as running:
        host = running.engines[0].host if kind == "engine" else running.router
        assert host is not None
        secret = await running.new_client("caller", "generate")
        async with open_channel(host.address) as channel:
            metadata = bearer(await running.token("caller", secret))
            yield Service(model_pb2_grpc.ModelServiceStub(channel), metadata, "sim-river")


def code_of(error: grpc.aio.AioRpcError) -> str:
    """The status of a failed call."""
    return error.code().name
