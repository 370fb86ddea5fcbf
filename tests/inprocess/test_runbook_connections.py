"""What the runbook's table of connections says is what gRPC really says of them.

Each row's status and words are those of gRPC for Python. What grpcurl and other Go programs say
beside them is not run here: no package registry of the tests has one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from tests.support import tls
from tests.support.inprocess import cluster
from tests.support.runbook import rows
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).resolve().parents[2]
TABLE = rows((ROOT / "docs/runbook.md").read_text(encoding="utf-8"), "Connections")
SYMPTOMS = [row[0] for row in TABLE]

CURL = "Received HTTP/0.9"
"""The one row that is not gRPC's: curl's word at a gRPC port."""


def row_of(words: str) -> tuple[str, list[str]]:
    """Status, and the words one of which is said, of the row that has these."""
    (symptom,) = [symptom for symptom in SYMPTOMS if f"`{words}`" in symptom]
    found = re.search(r"`([A-Z_]+)`: (.*)", symptom)
    assert found is not None, symptom
    return found[1], re.findall(r"`([^`]+)`", found[2])


async def check(
    target: str, credentials: grpc.ChannelCredentials | None = None, **options: Any
) -> grpc.aio.AioRpcError:
    """The error of a health check."""
    known = [(f"grpc.{name}", value) for name, value in options.items()]
    channel = (
        grpc.aio.insecure_channel(target, options=known)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options=known)
    )
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=BOUND_S
            )
    return failed.value


def assert_as_told(words: str, error: grpc.aio.AioRpcError) -> None:
    """The error is the row's."""
    status, said = row_of(words)
    assert error.code().name == status, error.details()
    assert any(one in (error.details() or "") for one in said), error.details()


async def test_nobody_listens():
    assert_as_told("Connection refused", await check("127.0.0.1:1"))


async def test_nobody_has_the_name():
    assert_as_told("Domain name not found", await check("nowhere.invalid:50051"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.made(tmp_path_factory.mktemp("certificates"))


async def test_plain_text_and_tls_do_not_understand_each_other_and_certificates_count(
    tmp_path: Path, certificates: Path
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "secured").mkdir()
    async with (
        cluster(tmp_path / "plain", engines=()) as plain,
        cluster(tmp_path / "secured", engines=(), certificates=certificates) as secured,
    ):
        mine = tls.credentials(certificates)
        assert_as_told("WRONG_VERSION_NUMBER", await check(plain.auth.address, mine))
        assert_as_told("context deadline exceeded", await check(secured.auth.address))
        strangers = tls.credentials(tls.made(tmp_path / "strangers"))
        assert_as_told("CERTIFICATE_VERIFY_FAILED", await check(secured.auth.address, strangers))
        assert_as_told(
            "Hostname Verification Check failed",
            await check(secured.auth.address, mine, ssl_target_name_override="elsewhere"),
        )
        assert_as_told(
            "tls: certificate required",
            await check(secured.auth.address, tls.credentials(certificates, None)),
        )


@asynccontextmanager
async def proxy(status: int) -> AsyncIterator[str]:
    """Something that speaks HTTP/2, is no gRPC server, and answers each call with this status."""
    block = b"\x08\x03" + str(status).encode() + headers.literal("content-type", "text/html")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(h2.PREFACE))
        writer.write(h2.settings({}))
        while len(head := await reader.read(9)) == 9:
            length, kind, stream = int.from_bytes(head[:3]), head[3], int.from_bytes(head[5:])
            await reader.readexactly(length)
            if kind == h2.HEADERS:
                writer.write(h2.headers(stream, block, end_stream=True))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


@pytest.mark.parametrize("status", [464, 415, 403, 502, 504, 404])
async def test_a_proxys_answer_is_a_status_of_grpc(status: int):
    async with proxy(status) as address:
        assert_as_told(f"status: {status}", await check(address))


async def test_a_port_of_ours_answers_415_to_what_is_no_grpc_and_nothing_to_http_1(tmp_path: Path):
    async def curl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl",
            "-sS",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode(errors="replace")

    async with cluster(tmp_path, engines=()) as running:
        url = f"http://{running.auth.address}/"
        said = await curl("-o", "/dev/null", "-w", "%{http_code}", "--http2-prior-knowledge", url)
        assert said == "415"
        (row,) = [row for row in TABLE if CURL in row[0]]
        assert row[0].split("`")[1] in await curl(url)


async def test_who_pings_too_often_is_sent_away(tmp_path: Path):
    pings = {
        "keepalive_time_ms": 1000,
        "keepalive_permit_without_calls": 1,
        "http2.max_pings_without_data": 0,
    }
    async with cluster(tmp_path, engines=()) as running:
        options = [(f"grpc.{name}", value) for name, value in pings.items()]
        async with grpc.aio.insecure_channel(running.auth.address, options=options) as channel:
            call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                async with asyncio.timeout(BOUND_S):
                    while await call.read() is not grpc.aio.EOF:
                        pass
            assert_as_told("too_many_pings", ended.value)


def test_every_row_is_provoked_here():
    told = set(Path(__file__).read_text(encoding="utf-8").split('"'))
    statuses = {"464", "415", "403", "502", "504", "404"}
    for symptom in SYMPTOMS:
        words = re.findall(r"`([^`]+)`", symptom)
        named = any(word in told or word.removeprefix("status: ") in statuses for word in words)
        assert named or CURL in symptom, symptom
