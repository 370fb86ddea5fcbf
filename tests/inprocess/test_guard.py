"""What surrounds every RPC of a process: places for those who may call."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch.v1 import model_pb2
from services.local_engine.app import running
from services.local_engine.settings import Settings
from tests.support.auth import bearer
from tests.support.inprocess import model_stub
from tests.support.local_keys import LocalKeys


async def test_streams_without_a_credential_never_take_the_places_of_callers():
    keys = LocalKeys()
    settings = Settings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", engine="sim", max_concurrent_rpcs=2
    )
    async with (
        running(settings, key_source=keys) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        too_many = health.Watch(health_pb2.HealthCheckRequest())
        assert await too_many.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        listed = await model_stub(channel).ListModels(
            model_pb2.ListModelsRequest(), metadata=bearer(keys.token("generate"))
        )
        assert listed.models
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*(watch.code() for watch in watches))


async def test_garbage_sent_to_reflection_is_the_callers_fault_and_no_incident(caplog):
    keys = LocalKeys()
    settings = Settings(listen="127.0.0.1:0", http_listen="127.0.0.1:0", engine="sim")
    async with (
        running(settings, key_source=keys) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        for version in ("v1", "v1alpha"):
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            )()
            await call.write(b"\xff\xff\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
