"""The ways to a provider: through an HTTP proxy or past it, and connections made beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from services.chassis.settings import Secret
from services.cloud_proxy.http_session import Http, Proxy
from services.cloud_proxy.settings import Settings
from tests.support.cloud import ask, cloud_proxy
from tests.support.waiting import BOUND_S


class Forwarder:
    """An HTTP proxy for plain requests: it notes whom it was asked for, and asks them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.credentials: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        method, url, version = line.decode().split()
        self.asked.append(url)
        for header in rest.decode().split("\r\n"):
            if header.lower().startswith("proxy-authorization:"):
                self.credentials.append(header.partition(":")[2].strip())
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        up, down = await asyncio.open_connection(name, int(port))
        down.write(f"{method} /{path} {version}\r\n".encode() + rest)
        await asyncio.gather(self._pump(reader, down), self._pump(up, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def forwarder() -> AsyncIterator[tuple[Forwarder, str]]:
    found = Forwarder()
    server = await asyncio.start_server(found.handle, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield found, f"{host}:{port}"
    finally:
        server.close()


async def test_providers_are_asked_through_the_proxy_with_its_credential(tmp_path):
    async with forwarder() as (way, address):
        secret = Secret(f"http://user:word@{address}")
        async with cloud_proxy(tmp_path, https_proxy=secret, warm=False) as proxy:
            answer = await proxy.answer(ask())
            assert answer.choices[0].text
            (asked,) = way.asked
            assert asked == f"{proxy.provider.url}/v1/chat/completions"
            assert way.credentials == ["Basic dXNlcjp3b3Jk"]


async def test_hosts_of_no_proxy_are_asked_directly(tmp_path):
    async with (
        forwarder() as (way, address),
        cloud_proxy(
            tmp_path,
            https_proxy=Secret(f"http://{address}"),
            no_proxy="internal.example,127.0.0.1",
            warm=False,
        ) as proxy,
    ):
        assert (await proxy.answer(ask())).choices[0].text
        assert way.asked == []


async def test_proxy_that_is_not_there_is_said_to_be_unreachable(tmp_path):
    async with cloud_proxy(
        tmp_path, https_proxy=Secret("http://127.0.0.1:1"), attempts=1, warm=False
    ) as proxy:
        _, ended = await proxy.chunks(ask())
        assert "could not be reached" in ended.message
        assert str(ended.work) == "not_dispatched"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.example.com/v1", "http://p:1"),
        ("https://api.example.com:8443/v1", "http://p:1"),
        ("https://sub.inner.example/v1", None),
        ("https://inner.example/v1", None),
    ],
)
def test_no_proxy_is_read_as_everywhere(url, expected):
    way = Http(None, Proxy(Secret("http://p:1"), "inner.example,other"))  # type: ignore[arg-type]
    assert way.proxy_for(url) == expected


def test_environment_of_every_program_is_the_default_of_ours():
    named = {"HTTPS_PROXY": "http://p:1", "no_proxy": "a"}
    filled = Settings.with_proxies("X_", named)
    assert (filled["X_HTTPS_PROXY"], filled["X_NO_PROXY"]) == ("http://p:1", "a")
    own = {"X_HTTPS_PROXY": "http://own:1", "HTTPS_PROXY": "http://p:1"}
    assert Settings.with_proxies("X_", own)["X_HTTPS_PROXY"] == "http://own:1"
    assert "X_HTTPS_PROXY" not in Settings.with_proxies("X_", {})


async def test_connection_is_open_before_the_first_request(tmp_path):
    greeted = asyncio.Event()
    ports: list[int] = []

    async def greet(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        assert "Authorization" not in request.headers
        greeted.set()
        return web.Response(status=404)

    async def chat(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        message = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
        return web.json_response({"choices": [message]})

    app = web.Application()
    app.router.add_get("/", greet)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with cloud_proxy(tmp_path, url=f"http://127.0.0.1:{port}") as proxy:
            async with asyncio.timeout(BOUND_S):
                await greeted.wait()
                while any(t.get_name() == "warm connections" for t in asyncio.all_tasks()):
                    await asyncio.sleep(0.01)
            assert (await proxy.answer(ask())).choices[0].text == "hi"
        assert ports[0] == ports[1]
    finally:
        await runner.cleanup()
