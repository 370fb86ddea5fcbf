"""TLS among real processes: Consul's health checks, and a router of several workers."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.registry import open_registry
from services.local_engine import app as engine_app
from services.local_engine import settings as engine_settings
from tests.support import tls
from tests.support.auth import bearer
from tests.support.consul import ConsulAgent, running_consul
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S, until
from tools.cluster.ports import free_port

pytestmark = pytest.mark.cluster

ENGINE = "anabranch-engine"


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return tls.made(tmp_path / "certs")


# Consul


@asynccontextmanager
async def engine(consul: ConsulAgent, certs: Path, **changes: Any) -> AsyncIterator[None]:
    settings = engine_settings.Settings(
        engine="sim",
        served_model_name=MODEL,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        registry=consul.url,
        **(tls.settings(certs, ENGINE) | changes),
    )
    async with engine_app.running(settings, key_source=LocalKeys()):
        yield


async def until_healthy(consul: ConsulAgent) -> None:
    registry = open_registry(consul.url)
    try:
        async with asyncio.timeout(BOUND_S):
            async for instances in registry.watch(ENGINE):
                if instances:
                    return
    finally:
        await registry.close()


async def test_consul_finds_a_service_healthy_that_demands_certificates(certs):
    async with (
        running_consul() as consul,
        engine(consul, certs, health_listen="127.0.0.1:0"),
    ):
        await until_healthy(consul)


async def test_consul_checks_over_tls_where_there_is_no_health_port(certs):
    async with (
        running_consul() as consul,
        engine(consul, certs, tls_client_auth="none"),
    ):
        await until_healthy(consul)


# Workers


class Router:
    """A router of two worker processes, in front of a cluster in this one."""

    def __init__(self, certs: Path) -> None:
        self.certs = certs
        self.address, self.health, self.http = (f"127.0.0.1:{free_port()}" for _ in range(3))

    async def is_healthy(self) -> bool:
        async with open_channel(self.health) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=BOUND_S
                )
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def shown(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=tls.context(self.certs))
        try:
            return str(writer.get_extra_info("peercert")["serialNumber"])
        finally:
            writer.transport.abort()


@asynccontextmanager
async def two_workers(running: Cluster, certs: Path, logs: Path) -> AsyncIterator[Router]:
    router = Router(certs)
    secret = await running.new_client("workers", "relay", tenant="operators")
    backends = f"{ENGINE}={running.engines[0].host.address}"
    variables = {
        "LISTEN": router.address,
        "HTTP_LISTEN": router.http,
        "HEALTH_LISTEN": router.health,
        "REGISTRY": f"static:anabranch-auth={running.auth.address};{backends}",
        "CLIENT_ID": "workers",
        "CLIENT_SECRET": secret,
        **{
            name.upper(): str(value)
            for name, value in tls.settings(certs, "anabranch-router").items()
        },
    }
    with logs.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router", "--workers", "2"),
            env={
                "PATH": os.environ["PATH"],
                **{f"ANABRANCH_ROUTER_{name}": value for name, value in variables.items()},
            },
            stdout=log,
            stderr=log,
        )
    try:
        await until(router.is_healthy)
        yield router
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(BOUND_S):
            assert await process.wait() == 0


async def test_workers_share_a_port_under_mutual_tls_and_take_up_new_certificates(tmp_path, certs):
    async with (
        cluster(tmp_path, certificates=certs) as running,
        two_workers(running, certs, tmp_path / "log") as router,
    ):
        token = await running.token("shop", await running.new_client("shop", "generate"))
        request = pb.GenerateRequest(
            model=MODEL,
            messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hello")])],
            sampling=pb.Sampling(max_tokens=5, ignore_eos=True),
        )
        own = (("grpc.use_local_subchannel_pool", 1),)

        async def answered() -> int:
            secured = tls.credentials(certs)
            async with open_channel(router.address, credentials=secured, options=own) as channel:
                answer = await model_stub(channel).Generate(request, metadata=bearer(token))
            return len(answer.choices[0].token_ids)

        assert [await answered() for _ in range(10)] == [5] * 10
        web = tls.context(certs, None)
        web.set_alpn_protocols(["http/1.1"])
        async with aiohttp.ClientSession() as http:

            async def both_told() -> bool:
                # A worker that does not answer in time is left out of one scrape.
                async with http.get(f"https://{router.http}/metrics", ssl=web) as scraped:
                    lines = (await scraped.text()).splitlines()
                name = "anabranch_tls_certificate_expiry"
                expiry = [line for line in lines if line.startswith(name)]
                return all(any(f'worker="{w}"' in line for line in expiry) for w in "01")

            await until(both_told)
        with pytest.raises((ssl.SSLError, ConnectionError, grpc.aio.AioRpcError)):
            async with open_channel(
                router.address, credentials=tls.credentials(certs, None), options=own
            ) as stranger:
                await model_stub(stranger).Generate(
                    request, metadata=bearer(token), timeout=BOUND_S
                )

        tls.certs.make(certs)
        newest = tls.serial(certs, "anabranch-router")

        async def all_show() -> bool:
            # Connections spread over the workers; the supervisor answers HTTP.
            asked = [router.address] * 20 + [router.http]
            return {await router.shown(address) for address in asked} == {newest}

        await until(all_show)
        assert [await answered() for _ in range(10)] == [5] * 10
