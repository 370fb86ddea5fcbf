"""Whole services under mutual TLS: calls between them, probes, HTTPS, and new certificates."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch import AsyncClient
from anabranch.environment import client_arguments
from anabranch.v1 import admin_pb2, auth_pb2, auth_pb2_grpc, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.auth import app as auth_app
from services.auth import settings as auth_settings
from services.chassis.channels import open_channel
from services.chassis.host import Host
from tests.support import tls
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S, until


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return tls.made(tmp_path / "certs")


def ask(tokens: int = 20) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=MODEL,
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hello")])],
        sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True),
    )


async def credential(running: Cluster) -> str:
    return await running.token("shop", await running.new_client("shop", "generate"))


async def seen(address: str, directory: Path) -> str:
    """The serial number of the certificate that new connections to a gRPC port are shown."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=tls.context(directory))
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.transport.abort()


async def shows(hosts: dict[str, Host], directory: Path) -> None:
    """Waits until each of the services shows the certificate that lies on disk for it."""

    async def all_show() -> bool:
        return all(
            [
                await seen(host.address, directory) == tls.serial(directory, name)
                for name, host in hosts.items()
            ]
        )

    await until(all_show)


@asynccontextmanager
async def auth(tmp_path: Path, certs: Path, **changes: Any):
    settings = auth_settings.Settings(
        **{
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "registry": "none",
            "data_dir": tmp_path / "auth",
            "bootstrap_secret_file": tmp_path / "secret",
            "drain_timeout": 1.0,
            **tls.settings(certs, auth_app.SERVICE),
            **changes,
        }
    )
    async with auth_app.running(settings) as host:
        yield host


# Between services


async def test_a_request_passes_from_the_caller_to_the_engine_under_mutual_tls(tmp_path, certs):
    async with cluster(tmp_path, certificates=certs) as running:
        assert running.router is not None
        token = await credential(running)
        async with running.channel(running.router) as channel:
            stub = model_stub(channel)
            chunks = [c async for c in stub.StreamGenerate(ask(), metadata=bearer(token))]
            # This one goes on over a channel of grpc.aio, a stream over a session.
            counted = await stub.CountTokens(
                model_pb2.CountTokensRequest(model=MODEL, request=ask()), metadata=bearer(token)
            )
        assert sum(len(chunk.token_ids) for chunk in chunks) == 20
        assert counted.prompt_tokens > 0
        for host in (running.router, running.auth, running.engines[0].host):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with open_channel(host.address) as plain:
                    stub = health_pb2_grpc.HealthStub(plain)
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_client_library_gets_in_by_its_environment(tmp_path, certs):
    async with cluster(tmp_path, certificates=certs) as running:
        assert running.router is not None
        secret = await running.new_client("shop", "generate")
        environment = {
            "ANABRANCH_TARGET": running.router.address,
            "ANABRANCH_AUTH_TARGET": running.auth.address,
            "ANABRANCH_CLIENT_ID": "shop",
            "ANABRANCH_CLIENT_SECRET": secret,
            "ANABRANCH_TLS_CA_FILE": str(certs / "ca.pem"),
            "ANABRANCH_TLS_CERT_FILE": str(certs / "client.pem"),
            "ANABRANCH_TLS_KEY_FILE": str(certs / "client.key"),
        }
        async with AsyncClient(**client_arguments(environment)) as client:
            answer = await client.generate(model=MODEL, prompt="hello", max_tokens=5)
        assert answer.text


async def test_a_router_uses_no_backend_that_proves_to_be_another_service(tmp_path, certs):
    async with cluster(tmp_path, certificates=certs) as running:
        stranger = await running.add_engine(
            tls_cert_file=certs / "anabranch-auth.pem", tls_key_file=certs / "anabranch-auth.key"
        )

        async def refused() -> bool:
            states = {b.backend_id: b for b in await running.backends()}
            found = states.get(stranger.host.instance_id)
            return found is not None and "not accepted: Hostname mismatch" in found.detail

        await until(refused)
        states = {b.backend_id: b.state for b in await running.backends()}
        ready = [id for id, state in states.items() if state == admin_pb2.BACKEND_STATE_READY]
        assert ready == [running.engines[0].host.instance_id]


async def test_a_stream_goes_on_while_every_service_takes_up_new_certificates(tmp_path, certs):
    async with cluster(tmp_path, certificates=certs) as running:
        assert running.router is not None
        engine = running.engines[0]
        token = await credential(running)
        async with running.channel(running.router) as channel:
            call = model_stub(channel).StreamGenerate(ask(300), metadata=bearer(token))
            tokens: list[int] = []
            attempts = 0
            async for chunk in call:
                tokens += chunk.token_ids
                if not attempts:
                    engine.simulation.slowdown = 100.0
                    tls.certs.make(certs)
                    await shows(
                        {
                            "anabranch-router": running.router,
                            "anabranch-engine": engine.host,
                            "anabranch-auth": running.auth,
                        },
                        certs,
                    )
                    engine.simulation.slowdown = 1.0
                if chunk.HasField("receipt"):
                    assert chunk.receipt.resumed_at_tokens == []
                    assert len(chunk.receipt.attempts) == 1
                attempts += 1
        assert len(tokens) == 300
        assert attempts > 1
        # A new caller, new single calls of the router, and a new session all find their way.
        async with running.channel(running.router) as channel:
            await model_stub(channel).CountTokens(
                model_pb2.CountTokensRequest(model=MODEL, request=ask()), metadata=bearer(token)
            )
        await running.add_engine()
        await running.backends_ready(2)


async def test_a_whole_cluster_moves_to_another_authority_around_an_open_stream(tmp_path, certs):
    async with cluster(tmp_path, certificates=certs) as running:
        assert running.router is not None
        engine = running.engines[0]
        token = await credential(running)
        services = {
            "anabranch-router": running.router,
            "anabranch-engine": engine.host,
            "anabranch-auth": running.auth,
        }
        old = tls.credentials(certs)

        async def moved() -> bool:
            try:
                await shows(services, certs)
            except ssl.SSLError:
                return False
            return True

        async with open_channel(running.router.address, credentials=old) as before:
            call = model_stub(before).StreamGenerate(ask(300), metadata=bearer(token))
            tokens = list((await call.read()).token_ids)
            engine.simulation.slowdown = 100.0
            tls.replace_all(certs, by=tls.made(tmp_path / "others"))
            await until(moved)
            # The connection of before is for what it has begun.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await model_stub(before).ListModels(
                    model_pb2.ListModelsRequest(), metadata=bearer(token), timeout=BOUND_S
                )
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            # The router asks the engine over a channel of grpc.aio, under new credentials.
            async with running.channel(running.router) as now:
                await model_stub(now).CountTokens(
                    model_pb2.CountTokensRequest(model=MODEL, request=ask()),
                    metadata=bearer(token),
                    timeout=BOUND_S,
                )
            await running.add_engine()
            await running.backends_ready(2)
            engine.simulation.slowdown = 1.0
            while (chunk := await call.read()) is not grpc.aio.EOF:
                tokens += chunk.token_ids
            assert len(tokens) == 300
            assert await call.code() is grpc.StatusCode.OK


# Probes and HTTP


async def test_the_health_port_answers_in_plain_text_and_nothing_but_health(tmp_path, certs):
    async with (
        auth(tmp_path, certs, health_listen="127.0.0.1:0") as host,
        open_channel(host.health_address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=auth_app.FULL_NAME)
        answer = await health.Check(request, timeout=BOUND_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        login = auth_pb2.IssueTokenRequest(
            client_id="admin", client_secret=(tmp_path / "secret").read_text().strip()
        )
        async with open_channel(host.address, credentials=tls.credentials(certs)) as secured:
            issued = await auth_pb2_grpc.AuthServiceStub(secured).IssueToken(login)
        # Not even who may: the port has no other service.
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(
                login, timeout=BOUND_S, metadata=bearer(issued.access_token)
            )
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_health_port_says_when_the_service_no_longer_serves(tmp_path, certs):
    async with (
        auth(tmp_path, certs, health_listen="127.0.0.1:0") as host,
        open_channel(host.health_address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        await host.stop_serving("a test says so")
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_oauth_endpoint_speaks_https_without_client_certificates(tmp_path, certs):
    trusting = tls.context(certs, None)
    trusting.set_alpn_protocols(["http/1.1"])
    secret = tmp_path / "secret"
    async with auth(tmp_path, certs) as host, aiohttp.ClientSession() as http:
        form = {
            "grant_type": "client_credentials",
            "client_id": "admin",
            "client_secret": secret.read_text().strip(),
        }
        token = f"{host.http_address}/oauth/token"
        async with http.post(f"https://{token}", data=form, ssl=trusting) as answer:
            assert answer.status == 200
            assert (await answer.json())["access_token"]
        with pytest.raises(aiohttp.ClientError):
            await http.post(f"http://{token}", data=form)


async def test_the_http_port_takes_up_new_certificates_while_connections_go_on(tmp_path, certs):
    trusting = tls.context(certs, None)
    trusting.set_alpn_protocols(["http/1.1"])
    async with auth(tmp_path, certs) as host:

        async def shown(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            """Asks on a connection; returns the serial number that it began with."""
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: auth\r\n\r\n")
            async with asyncio.timeout(BOUND_S):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"alive\n")
            return str(writer.get_extra_info("peercert")["serialNumber"])

        address, _, port = host.http_address.rpartition(":")
        kept = await asyncio.open_connection(address, int(port), ssl=trusting)
        before = await shown(*kept)
        assert before == tls.serial(certs, auth_app.SERVICE)
        tls.certs.make(certs)

        async def renewed() -> bool:
            new = await asyncio.open_connection(address, int(port), ssl=trusting)
            try:
                return await shown(*new) == tls.serial(certs, auth_app.SERVICE)
            finally:
                new[1].transport.abort()

        await until(renewed)
        assert await shown(*kept) == before
        kept[1].transport.abort()


async def test_the_http_port_stays_plain_when_that_is_set(tmp_path, certs):
    async with (
        auth(tmp_path, certs, http_tls="off") as host,
        aiohttp.ClientSession() as http,
        http.get(f"http://{host.http_address}/metrics") as answer,
    ):
        assert "anabranch_tls_certificate_expiry_seconds" in await answer.text()


async def test_a_bad_set_on_disk_changes_nothing_for_anyone(tmp_path, certs, caplog):
    before = tls.serial(certs, auth_app.SERVICE)
    async with auth(tmp_path, certs) as host:
        (certs / "anabranch-auth.key").write_text("half a key")

        async def told() -> bool:
            return any("last good ones stay" in record.message for record in caplog.records)

        await until(told)
        assert await seen(host.address, certs) == before
        errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == 1


async def test_a_certificate_without_the_services_name_is_warned_of(tmp_path, certs, caplog):
    wrong = tls.settings(certs, "client")
    async with auth(tmp_path, certs, **wrong):
        pass
    assert any("does not hold the service's name" in r.message for r in caplog.records)
