"""Fetching images: over real connections, from a host that does all that one should not."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.engine import ModelFacts, Picture
from services.local_engine.images.addresses import Place, parse_networks
from services.local_engine.images.fetcher import FetchError, ImageFetcher
from services.local_engine.images.limits import ImageLimits
from services.local_engine.images.reader import ImageReader
from tests.support import tls
from tests.support.pictures import encoded, linked, part, png_that_says, user

LOOPBACK = ("127.0.0.0/8", "::1/128")
MOST = 20_000
PICTURE = encoded()
FACTS = ModelFacts("m", "m", 1000, 1, (pb.CAPABILITY_GENERATE, pb.CAPABILITY_IMAGES), 0, 4)


class Host:
    """A server of images; `asked` are the paths that it was asked for."""

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.authority = str(directory / "ca.pem")

    def uri(self, path: str, name: str = "localhost") -> str:
        return f"https://{name}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers.append(dict(request.headers))
        match request.path:
            case "/picture":
                return web.Response(body=PICTURE, headers={"Set-Cookie": "a=b"})
            case "/moved":
                raise web.HTTPFound("/picture")
            case "/large":
                return web.Response(body=b"\0" * (MOST + 1))
            case "/endless":
                return await self._stream(request, b"\0" * 5000, 0.0)
            case "/slow":
                return await self._stream(request, b"\0", 0.05)
            case "/squeezed":
                return web.Response(
                    body=gzip.compress(b"\0" * 10_000_000), headers={"Content-Encoding": "gzip"}
                )
            case "/bomb":
                return web.Response(body=png_that_says(60_000, 60_000))
            case "/page":
                return web.Response(text="<svg/>", content_type="image/png")
        raise web.HTTPNotFound

    async def _stream(self, request: web.Request, piece: bytes, pause: float) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(piece)
            await asyncio.sleep(pause)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return tls.made(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def host(certificates: Path) -> AsyncIterator[Host]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    name = "anabranch-engine"
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    listening = socket.create_server(("127.0.0.1", 0))
    serving = Host(listening.getsockname()[1], certificates)
    app = web.Application()
    app.router.add_get("/{path:.*}", serving.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, listening, ssl_context=context).start()
        yield serving
    finally:
        await runner.cleanup()


@asynccontextmanager
async def fetching(
    certificates: Path, *, networks: tuple[str, ...] = LOOPBACK, **how: Any
) -> AsyncIterator[tuple[Host, ImageFetcher]]:
    async with host(certificates) as serving:
        given: dict[str, Any] = {"timeout": 10.0, "authorities": serving.authority} | how
        async with ImageFetcher.open(networks=parse_networks(networks), **given) as fetcher:
            yield serving, fetcher


async def test_an_image_comes_as_it_is_and_nothing_of_the_caller_goes_along(certificates):
    async with fetching(certificates) as (serving, fetcher):
        assert await fetcher.fetch(serving.uri("/picture"), MOST) == PICTURE
        assert await fetcher.fetch(serving.uri("/picture"), len(PICTURE)) == PICTURE
    sent = {name for headers in serving.headers for name in headers}
    assert sent == {"Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"}  # no cookie


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/moved", "could not be fetched"),
        ("/nowhere", "could not be fetched"),
        ("/large", f"is larger than {MOST} bytes"),
        ("/endless", f"is larger than {MOST} bytes"),
        ("/squeezed", "could not be fetched"),
    ],
)
async def test_what_is_no_plain_answer_of_bounded_size_is_refused(certificates, path, said):
    async with fetching(certificates) as (serving, fetcher):
        with pytest.raises(FetchError) as refused:
            await fetcher.fetch(serving.uri(path), MOST)
    assert str(refused.value) == said
    assert serving.asked == [path]


async def test_a_host_that_trickles_is_given_up(certificates):
    async with fetching(certificates, timeout=0.5) as (serving, fetcher):
        with pytest.raises(FetchError, match=r"^could not be fetched$"):
            await fetcher.fetch(serving.uri("/slow"), MOST)


@pytest.mark.parametrize("name", ["localhost", "own.example"])
async def test_a_name_that_leads_inside_is_not_connected_to_and_nothing_is_told(
    certificates, monkeypatch, name, caplog
):
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", leads_to("127.0.0.1"))
    async with fetching(certificates, networks=()) as (serving, fetcher):
        with pytest.raises(FetchError) as refused:
            await fetcher.fetch(serving.uri("/picture", name), MOST)
    assert str(refused.value) == "could not be fetched"
    assert serving.asked == []
    assert "no address that may be connected to" in str(caplog.records[-1].__dict__["cause"])


async def test_a_name_is_looked_up_once_and_only_what_was_checked_is_connected_to(
    certificates, monkeypatch
):
    looked_up = leads_to("127.0.0.9", "127.0.0.1")
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up)
    async with fetching(certificates, networks=("127.0.0.1/32",)) as (serving, fetcher):
        # A name server that changes its mind has no second chance to.
        assert await fetcher.fetch(serving.uri("/picture"), MOST) == PICTURE
        assert looked_up.times == 1


async def test_a_host_that_cannot_show_who_it_is_is_refused(certificates, monkeypatch):
    async with fetching(certificates, authorities="") as (serving, fetcher):
        with pytest.raises(FetchError, match="could not be fetched"):
            await fetcher.fetch(serving.uri("/picture"), MOST)
    async with fetching(certificates) as (serving, fetcher):
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", leads_to("127.0.0.1"))
        with pytest.raises(FetchError, match="could not be fetched"):
            await fetcher.fetch(serving.uri("/picture", "other.example"), MOST)
    assert serving.asked == []


async def test_a_proxy_of_the_environment_is_not_used(certificates, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with fetching(certificates) as (serving, fetcher):
        assert await fetcher.fetch(serving.uri("/picture"), MOST) == PICTURE


async def read(reader: ImageReader, asked: pb.GenerateRequest) -> list[Picture]:
    """The pictures as a reader hands them on."""

    async def kept(found: list[Picture]) -> list[Picture]:
        return found

    return await reader.read(asked, kept)


def request(*parts: pb.ContentPart) -> pb.GenerateRequest:
    return pb.GenerateRequest(messages=[user("look", *parts)])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/bomb", "is 60000 x 60000 pixels"),
        ("/page", "is none of PNG"),
        ("/large", f"is larger than {MOST} bytes"),
    ],
)
async def test_a_fetched_image_is_checked_as_one_that_came_along(certificates, path, said):
    async with fetching(certificates) as (serving, fetcher):
        place = Place.parse(f"localhost:{serving.port}")
        reader = ImageReader(ImageLimits(bytes_each=MOST, places=(place,)), fetcher)
        asked = request(part(PICTURE), linked(serving.uri(path)))
        reader.check(asked, FACTS)
        with pytest.raises(Fault) as refused:
            await read(reader, asked)
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    (violation,) = refused.value.violations
    assert violation.field == "messages[0].content[2].image.uri"
    assert said in violation.description


async def test_all_images_of_a_request_share_its_bytes(certificates):
    async with fetching(certificates) as (serving, fetcher):
        place = Place.parse(f"localhost:{serving.port}")
        uri = serving.uri("/picture")
        limits = ImageLimits(bytes_all=2 * len(PICTURE), places=(place,))
        reader = ImageReader(limits, fetcher)
        two = request(linked(uri), part(PICTURE))
        assert [p.data for p in await read(reader, two)] == [PICTURE, PICTURE]
        with pytest.raises(Fault, match=r"images of more than|is larger than"):
            await read(reader, request(linked(uri), part(PICTURE), linked(uri)))


async def test_all_images_of_a_request_are_fetched_by_one_deadline(certificates):
    async with fetching(certificates, timeout=1.0) as (serving, fetcher):
        place = Place.parse(f"localhost:{serving.port}")
        reader = ImageReader(ImageLimits(places=(place,)), fetcher)
        slow = [linked(serving.uri("/slow"))] * 6
        with pytest.raises(Fault) as refused:
            await read(reader, request(*slow, linked(serving.uri("/picture"))))
    assert len(refused.value.violations) == 7
    assert {v.description for v in refused.value.violations} == {"could not be fetched"}
    # Four at once: had each had a deadline of its own, the others would have been asked for later.
    assert serving.asked == ["/slow"] * 4


async def test_turns_are_held_until_what_is_made_of_images_is_done_and_go_to_tenants_by_turns():
    reader = ImageReader(ImageLimits(), None)
    going, ends = [], asyncio.Event()

    def making(name: str) -> Any:
        async def make(_: list[Picture]) -> None:
            going.append(name)
            await ends.wait()

        return asyncio.create_task(reader.read(request(part(PICTURE)), make, name[0]))

    first = [making(f"a{number}") for number in range(8)]
    await asyncio.sleep(0.01)
    assert going == ["a0", "a1", "a2", "a3"]
    first[0].cancel()  # gives nothing back: what it began goes on
    other = making("b0")
    await asyncio.sleep(0.01)
    assert len(going) == 4
    ends.set()
    await asyncio.wait([*first, other])
    assert going[4:6] in (["a4", "b0"], ["b0", "a4"])


async def test_requests_beyond_those_that_may_wait_for_their_images_are_refused():
    reader = ImageReader(ImageLimits(), None)
    ends = asyncio.Event()

    async def make(_: list[Picture]) -> None:
        await ends.wait()

    asked = request(part(PICTURE))
    tasks = [asyncio.create_task(reader.read(asked, make, "a")) for _ in range(4 + 64)]
    await asyncio.sleep(0.01)
    with pytest.raises(Fault) as refused:
        reader.check(asked, FACTS, "a")
    reader.check(asked, FACTS, "b")
    ends.set()
    await asyncio.gather(*tasks)
    assert refused.value.reason == errors_pb2.ERROR_REASON_OVERLOADED
    assert refused.value.retry_after


def leads_to(*numbers: str) -> Any:
    """A name server's answer, whatever the name; `times` counts the questions."""

    async def getaddrinfo(_: str, port: int, **__: Any) -> list[Any]:
        getaddrinfo.times += 1  # type: ignore[attr-defined]
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        return [(*kind, "", (number, port)) for number in numbers]

    getaddrinfo.times = 0  # type: ignore[attr-defined]
    return getaddrinfo
