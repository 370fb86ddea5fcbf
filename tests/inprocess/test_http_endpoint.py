"""The HTTP endpoint over real sockets: probes, metrics, added routes and its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from services.chassis.health import Health
from services.chassis.http_endpoint import HttpEndpoint
from tests.support.waiting import BOUND_S


@asynccontextmanager
async def running(
    endpoint: HttpEndpoint,
) -> AsyncIterator[tuple[HttpEndpoint, aiohttp.ClientSession]]:
    await endpoint.start()
    try:
        async with aiohttp.ClientSession(f"http://{endpoint.address}") as session:
            yield endpoint, session
    finally:
        await endpoint.close()


def endpoint(
    health: Health | None = None, request: float = BOUND_S, idle: float = BOUND_S
) -> HttpEndpoint:
    return HttpEndpoint(
        "127.0.0.1:0",
        metrics=lambda: "up 1.0\n",
        ask=(health or Health()).ask,
        max_body_bytes=1024,
        request_timeout=request,
        idle_timeout=idle,
    )


async def fetch(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as answer:
        return answer.status, await answer.text()


async def test_probes_tell_alive_from_started_from_ready():
    health = Health()
    async with running(endpoint(health)) as (_, session):
        for path in ("/livez", "/healthz"):
            assert await fetch(session, path) == (200, "alive\n")
        assert await fetch(session, "/startupz") == (503, "not started: it is starting\n")
        assert await fetch(session, "/readyz") == (503, "not ready: it is starting\n")
        health.started()
        assert await fetch(session, "/startupz") == (200, "started\n")
        assert await fetch(session, "/readyz") == (200, "ready\n")
        health.trouble("engine", "it hangs", restart=True)
        for path in ("/livez", "/healthz"):
            assert await fetch(session, path) == (503, "not alive: it hangs\n")
        assert await fetch(session, "/startupz") == (200, "started\n")


async def test_metrics_are_rendered_as_prometheus_text():
    async with running(endpoint()) as (_, session), session.get("/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.text() == "up 1.0\n"


async def test_added_routes_answer_and_unknown_ones_do_not():
    async def shout(request: web.Request) -> web.Response:
        return web.Response(text=(await request.text()).upper())

    one = endpoint()
    one.add_post("/shout", shout)
    async with running(one) as (_, session):
        async with session.post("/shout", data="hello") as answer:
            assert await answer.text() == "HELLO"
        assert (await fetch(session, "/shout"))[0] == 405
        assert (await fetch(session, "/elsewhere"))[0] == 404


async def test_a_body_that_is_too_large_is_refused():
    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    one = endpoint()
    one.add_post("/read", read)
    async with running(one) as (_, session):
        async with session.post("/read", data=b"x" * 1024) as answer:
            assert answer.status == 200
        async with session.post("/read", data=b"x" * 1025) as answer:
            assert answer.status == 413


async def test_a_request_that_never_ends_is_answered_and_its_connection_closed():
    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    one = endpoint(request=0.2)
    one.add_post("/read", read)
    async with running(one) as (started, _):
        host, port = started.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        async with asyncio.timeout(BOUND_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        writer.close()


async def test_a_connection_that_sends_no_request_is_closed():
    async with running(endpoint(idle=0.2)) as (started, _):
        host, port = started.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HT")
        async with asyncio.timeout(BOUND_S):
            await reader.read()
        writer.close()


async def test_an_address_in_use_is_an_error():
    async with running(endpoint()) as (started, _):
        second = HttpEndpoint(started.address, metrics=str, ask=Health().ask)
        with pytest.raises(OSError, match="in use"):
            await second.start()


async def test_closing_twice_or_unstarted_is_harmless():
    one = endpoint()
    await one.close()
    await one.start()
    await one.close()
    await one.close()
