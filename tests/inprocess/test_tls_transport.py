"""TLS on our own transport, over real sockets and on both event loops: who gets in, and what a
change of certificates leaves undisturbed."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from services.chassis.channels import open_channel
from services.chassis.http2.client import ClientConnection, connect
from services.chassis.http2.frames import Code
from services.chassis.http2.server import Server
from services.chassis.http2.server_connection import ServerConnection
from services.chassis.http2.single_calls import SingleCalls
from services.chassis.tls import Tls
from tests.support import tls
from tests.support.raw_http2 import BOUND_S, generous, peer, until

# Its successor would run every test of the folder on both loops.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

SERVICE = "anabranch-engine"


async def names(_: bytes, context: Any) -> bytes:
    return ",".join(context.peer_identities()).encode()


async def each(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for one in requests:
        yield one


METHODS = {
    "Names": grpc.unary_unary_rpc_method_handler(names),
    "Each": grpc.stream_stream_rpc_method_handler(each),
}


@dataclass
class Scene:
    """A server under TLS, its files, and ways to it."""

    certs: Path
    tls: Tls
    server: Server
    port: int

    async def connect(self, by: Tls | None = None, name: str = SERVICE) -> ClientConnection:
        caller = by or Tls(tls.files(self.certs, "client"), client_auth=False, period=1.0)
        return await connect(f"127.0.0.1:{self.port}", generous(), caller.expecting(name))

    async def ask(self, by: Tls) -> bytes:
        calls = SingleCalls(f"127.0.0.1:{self.port}", generous(), lambda: by.expecting(SERVICE))
        try:
            return await calls.ask("/t.T/Names", b"", timeout=BOUND_S)
        finally:
            await calls.close()

    async def handshake(self, context: ssl.SSLContext) -> ssl.SSLObject:
        """A raw connection that says nothing; returns what TLS agreed on once bytes came."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="localhost"
        )
        try:
            # The server's own settings come only when it has accepted the client's certificate.
            async with asyncio.timeout(BOUND_S):
                if not await reader.read(9):
                    raise ConnectionResetError("it was closed")
            found: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return found
        finally:
            writer.transport.abort()

    async def renew(self) -> None:
        for _ in range(2):
            await self.tls.look()


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    if request.param == "uvloop":
        return uvloop.EventLoopPolicy()
    return asyncio.DefaultEventLoopPolicy()


@asynccontextmanager
async def serving(certs: Path, **how: Any) -> AsyncIterator[Scene]:
    found = Tls(tls.files(certs, SERVICE), client_auth=how.pop("client_auth", True), period=1.0)
    server = Server(limits=generous(), max_calls=100)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", METHODS),))
    port = await server.listen("127.0.0.1:0", tls=found.server_context)
    await server.start()
    try:
        yield Scene(certs, found, server, port)
    finally:
        await server.stop(None)


@pytest.fixture
def certs_dir(tmp_path: Path) -> Path:
    return tls.made(tmp_path / "certs")


@pytest.fixture
async def scene(certs_dir: Path) -> AsyncIterator[Scene]:
    async with serving(certs_dir) as served:
        yield served


def caller(certs: Path, name: str = "client") -> Tls:
    return Tls(tls.files(certs, name), client_auth=False, period=1.0)


async def echo(connection: ClientConnection, call: Any, heard: list[bytes], text: bytes) -> None:
    call.send(text)
    await until(lambda: text in heard)


# Who gets in


async def test_our_client_gets_in_and_the_server_knows_its_names(scene):
    assert await scene.ask(caller(scene.certs)) == b"client"
    assert await scene.ask(caller(scene.certs, "anabranch-router")) == b"anabranch-router,localhost"


async def test_a_client_of_grpc_aio_gets_in(scene):
    channel = open_channel(
        f"127.0.0.1:{scene.port}",
        credentials=tls.credentials(scene.certs),
        options=(("grpc.ssl_target_name_override", SERVICE),),
    )
    async with channel:
        call = channel.unary_unary("/t.T/Names")
        assert await call(b"", timeout=BOUND_S) == b"client"


async def test_what_is_agreed_on_is_tls_1_3_and_http_2(scene):
    agreed = await scene.handshake(tls.context(scene.certs))
    assert agreed.version() == "TLSv1.3"
    assert agreed.selected_alpn_protocol() == "h2"


async def refused(scene: Scene, context: ssl.SSLContext, caplog: Any) -> str:
    """Connects in vain; returns the cause in the server's log."""
    with caplog.at_level(logging.INFO, logger="services.chassis.http2.listeners"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await scene.handshake(context)
        await until(lambda: caplog.records)
    assert scene.server.connections == 0
    return str(caplog.records[0].cause)


async def test_tls_1_2_is_refused(scene, caplog):
    older = tls.context(scene.certs, newest=ssl.TLSVersion.TLSv1_2)
    assert "UNSUPPORTED_PROTOCOL" in await refused(scene, older, caplog)


async def test_who_shows_no_certificate_is_refused(scene, caplog):
    nobody = tls.context(scene.certs, None)
    assert "DID_NOT_RETURN_A_CERTIFICATE" in await refused(scene, nobody, caplog)


async def test_a_certificate_of_another_authority_is_refused(scene, tmp_path, caplog):
    others = tls.made(tmp_path / "others")
    stranger = tls.context(scene.certs, None)
    stranger.load_cert_chain(others / "client.pem", others / "client.key")
    assert "CERTIFICATE_VERIFY_FAILED" in await refused(scene, stranger, caplog)


async def test_failed_handshakes_do_not_fill_the_log(scene, caplog, monkeypatch):
    monkeypatch.setattr("services.chassis.http2.listeners._SILENCE_S", 3600.0)
    nobody = tls.context(scene.certs, None)
    with caplog.at_level(logging.INFO, logger="services.chassis.http2.listeners"):
        for _ in range(20):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await scene.handshake(nobody)
        (listener,) = scene.server._secured
        await until(lambda: listener._untold + len(caplog.records) >= 20)
    assert (len(caplog.records), listener._untold) == (1, 19)


async def test_without_client_authentication_no_certificate_is_needed(certs_dir):
    async with serving(certs_dir, client_auth=False) as scene:
        assert (await scene.handshake(tls.context(certs_dir, None))).version() == "TLSv1.3"


async def test_our_client_refuses_a_server_of_another_authority(scene, tmp_path):
    others = caller(tls.made(tmp_path / "others"))
    with pytest.raises(OSError, match="certificate is not accepted"):
        await scene.connect(others)


async def test_our_client_refuses_a_server_of_another_name(scene):
    with pytest.raises(OSError, match="certificate is not accepted: Hostname mismatch"):
        await scene.connect(name="anabranch-auth")


async def test_a_client_of_grpc_aio_refuses_a_server_of_another_name(scene):
    channel = open_channel(
        f"127.0.0.1:{scene.port}",
        credentials=tls.credentials(scene.certs),
        options=(("grpc.ssl_target_name_override", "anabranch-auth"),),
    )
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/t.T/Names")(b"", timeout=BOUND_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_our_client_that_is_refused_says_what_may_be_wrong(scene, tmp_path):
    others = tls.made(tmp_path / "others")
    stranger = Tls(
        tls.TlsFiles(others / "client.pem", others / "client.key", scene.certs / "ca.pem"),
        client_auth=False,
        period=1.0,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await scene.ask(stranger)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "may not accept our certificate" in refused.value.details()


# Plain text against TLS


async def test_a_peer_in_plain_text_is_closed_at_a_tls_port(scene):
    async with peer(scene.port) as plain:
        assert await plain.ended_with() == ("", "")
    assert scene.server.connections == 0


async def test_a_peer_that_speaks_no_http_2_within_tls_hears_so(scene):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", scene.port, ssl=tls.context(scene.certs), server_hostname="localhost"
    )
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(BOUND_S):
        heard = await reader.read(-1)
    assert b"this is no HTTP/2 connection" in heard
    writer.close()


async def test_our_client_in_tls_fails_at_a_port_in_plain_text(certs_dir):
    server = Server(limits=generous(), max_calls=1)
    port = await server.listen("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(OSError):  # noqa: PT011 - which one is OpenSSL's affair
            await connect(f"127.0.0.1:{port}", generous(), caller(certs_dir).expecting(SERVICE))
    finally:
        await server.stop(None)


async def test_our_client_refuses_a_tls_server_that_speaks_no_http_2(certs_dir):
    web = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    web.load_cert_chain(certs_dir / f"{SERVICE}.pem", certs_dir / f"{SERVICE}.key")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=web)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(OSError, match="does not speak HTTP/2"):
            await connect(f"127.0.0.1:{port}", generous(), caller(certs_dir).expecting(SERVICE))
    finally:
        server.close()


async def test_peers_that_fail_the_handshake_leave_nothing(scene, monkeypatch):
    made: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
    count = 0
    original = ServerConnection.__init__

    def counted(self: ServerConnection, *args: Any) -> None:
        nonlocal count
        original(self, *args)
        made.add(self)
        count += 1

    monkeypatch.setattr(ServerConnection, "__init__", counted)
    for _ in range(20):
        async with peer(scene.port) as plain:
            await plain.ended_with()
    assert count == 20
    gc.collect()
    await until(lambda: not made)
    assert await scene.ask(caller(scene.certs)) == b"client"


async def test_who_says_nothing_is_gone_after_the_handshakes_time(certs_dir, monkeypatch):
    monkeypatch.setattr("services.chassis.http2.listeners._HANDSHAKE_S", 0.2)
    async with serving(certs_dir) as scene:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.port)
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()


# Changes


async def test_a_stream_goes_on_through_a_change_and_new_connections_see_it(scene):
    before = tls.serial(scene.certs, SERVICE)
    connection = await scene.connect()
    heard: list[bytes] = []
    call = connection.call("/t.T/Each", (), heard.append)
    await echo(connection, call, heard, b"before")
    tls.certs.make(scene.certs)
    await scene.renew()
    assert tls.serial(scene.certs, SERVICE) != before
    await echo(connection, call, heard, b"after")
    agreed = await scene.handshake(tls.context(scene.certs))
    assert agreed.getpeercert()["serialNumber"] == tls.serial(scene.certs, SERVICE)
    call.half_close()
    assert await call.ended is None
    connection.close(Code.NO_ERROR, "done")


async def test_after_a_change_of_authority_only_the_new_ones_clients_get_in(scene, tmp_path):
    old = caller(scene.certs)
    connection = await scene.connect(old)
    heard: list[bytes] = []
    call = connection.call("/t.T/Each", (), heard.append)
    await echo(connection, call, heard, b"before")
    old_files = tmp_path / "old"
    old_files.mkdir()
    tls.replace_all(old_files, by=scene.certs)
    tls.replace_all(scene.certs, by=tls.made(tmp_path / "others"))
    await scene.renew()
    with pytest.raises(OSError, match="not accepted"):
        await scene.connect(old)
    # It would trust the new server; the server does not trust it.
    mixed = Tls(
        tls.TlsFiles(old_files / "client.pem", old_files / "client.key", scene.certs / "ca.pem"),
        client_auth=False,
        period=1.0,
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await scene.ask(mixed)
    assert await scene.ask(caller(scene.certs)) == b"client"
    await echo(connection, call, heard, b"after")
    connection.close(Code.NO_ERROR, "done")


async def test_no_attempt_to_connect_fails_while_certificates_change(scene):
    client = caller(scene.certs)
    stop = asyncio.Event()

    async def keep_asking() -> int:
        answered = 0
        while not stop.is_set():
            assert await scene.ask(client) == b"client"
            answered += 1
        return answered

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(keep_asking()) for _ in range(8)]
        for _ in range(10):
            tls.certs.make(scene.certs)
            await scene.renew()
        stop.set()
    assert all(task.result() > 0 for task in asking)


async def test_a_closed_port_refuses_and_what_is_open_goes_on(scene):
    connection = await scene.connect()
    heard: list[bytes] = []
    call = connection.call("/t.T/Each", (), heard.append)
    await echo(connection, call, heard, b"before")
    scene.server.close_listeners()
    with pytest.raises(ConnectionRefusedError):
        await scene.connect()
    await echo(connection, call, heard, b"after")
    connection.close(Code.NO_ERROR, "done")


async def test_a_process_without_descriptors_accepts_again_later(scene, monkeypatch):
    monkeypatch.setattr("services.chassis.http2.listeners._OUT_OF_RESOURCES_PAUSE_S", 0.05)
    (listener,) = scene.server._secured
    failures = 2
    bound = listener._bound

    class Exhausted:
        """The bound socket of a process that has no descriptor left, twice."""

        def accept(self) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return bound.accept()

        def fileno(self) -> int:
            return bound.fileno()

        def close(self) -> None:
            bound.close()

    listener._bound = Exhausted()
    assert await scene.ask(caller(scene.certs)) == b"client"
    assert failures == 0
