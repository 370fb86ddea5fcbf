"""The service config for callers in any language: gRPC's own retries, where they do no harm."""

from __future__ import annotations

import importlib.resources
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from anabranch.dial import DEFAULT_OPTIONS
from services.chassis import channels
from services.chassis.channels import transport_limits
from services.chassis.http2.server import Server
from tests.support.waiting import BOUND_S

PUBLISHED = importlib.resources.files("anabranch").joinpath("service_config.json").read_text()
PROTOSET = importlib.resources.files("anabranch.v1").joinpath("anabranch.protoset").read_bytes()


def _methods(config: str) -> set[str]:
    named = (name for each in json.loads(config)["methodConfig"] for name in each["name"])
    return {f"{name['service']}/{name['method']}" for name in named}


@pytest.mark.parametrize("config", [PUBLISHED, channels.service_config()])
def test_every_call_that_is_repeated_exists_and_none_of_them_generates(config: str):
    there = {
        f"{file.package}.{service.name}/{method.name}"
        for file in FileDescriptorSet.FromString(PROTOSET).file
        for service in file.service
        for method in service.method
        if not method.client_streaming and not method.server_streaming
    }
    assert _methods(config) <= there
    unsafe = {f"anabranch.v1.ModelService/{name}" for name in ("Generate", "Embed")}
    assert not _methods(config) & unsafe


def test_the_library_dials_with_what_is_published():
    assert dict(DEFAULT_OPTIONS)["grpc.service_config"] == PUBLISHED


@asynccontextmanager
async def unavailable(times: int, calls: Counter[str]) -> AsyncIterator[str]:
    """A server whose every method is away for the first `times` calls; its address."""

    def handler(name: str) -> grpc.RpcMethodHandler:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            calls[name] += 1
            if calls[name] <= times:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    server = Server(limits=transport_limits(), max_calls=100)
    names = ("ListModels", "Generate")
    handlers = {name: handler(name) for name in names}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("anabranch.v1.ModelService", handlers),)
    )
    port = await server.listen("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _call(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    call = channel.unary_unary(f"/anabranch.v1.ModelService/{method}")(b"", timeout=BOUND_S)
    return await call.code()


async def test_a_channel_with_it_repeats_what_is_safe_and_nothing_else():
    calls: Counter[str] = Counter()
    options = [("grpc.service_config", PUBLISHED)]
    async with (
        unavailable(2, calls) as address,
        grpc.aio.insecure_channel(address, options) as channel,
    ):
        assert await _call(channel, "ListModels") is grpc.StatusCode.OK
        assert await _call(channel, "Generate") is grpc.StatusCode.UNAVAILABLE
    assert calls == {"ListModels": 3, "Generate": 1}


async def test_a_channel_with_it_stops_repeating_when_too_much_fails():
    calls: Counter[str] = Counter()
    options = [("grpc.service_config", PUBLISHED)]
    async with (
        unavailable(10**6, calls) as address,
        grpc.aio.insecure_channel(address, options) as channel,
    ):
        for _ in range(20):
            assert await _call(channel, "ListModels") is grpc.StatusCode.UNAVAILABLE
    # Ten tokens, of which each failure takes one and the lower half buys no more attempts.
    assert calls["ListModels"] < 20 * 2
