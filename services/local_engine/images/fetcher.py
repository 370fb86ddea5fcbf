"""Fetches images from addresses that are allowed, over https, and from nowhere else.

A name is resolved once, by the connection itself, and only numbers that were checked are connected
to: no later answer of a name server can lead elsewhere. No redirect is followed, no proxy of the
environment used, no cookie kept, and nothing decompressed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.local_engine.images.addresses import Network, may_connect

_log = logging.getLogger(__name__)

_CONNECT_S = 3.0
_PIECE = 65_536
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "anabranch-engine"}


class FetchError(Exception):
    """An image could not be fetched. The text is for the caller: but for too large a size always
    the same, or who asks could learn what there is at addresses, and which ports are open."""


class _NoImage(Exception):
    """Why an answer is none that can be taken: for the log."""


class ImageFetcher:
    """Fetches with one session; `timeout` is in seconds, of a whole image."""

    def __init__(self, session: aiohttp.ClientSession, timeout: float) -> None:
        self._session = session
        self.timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, networks: Sequence[Network], timeout: float, authorities: str = ""
    ) -> AsyncIterator[ImageFetcher]:
        """`networks` may be connected to though they are private; `authorities` is a PEM file of
        who else may certify hosts, besides the system's."""
        context = ssl.create_default_context()
        if authorities:
            context.load_verify_locations(authorities)
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(networks), use_dns_cache=False, ssl=context, force_close=True
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_S),
        ) as session:
            yield cls(session, timeout)

    async def fetch(self, uri: str, most_bytes: int) -> bytes:
        """The bytes at an address that is_allowed. Raises FetchError."""
        try:
            async with self._session.get(URL(uri, encoded=True), allow_redirects=False) as answer:
                return await _body(answer, most_bytes)
        except (aiohttp.ClientError, OSError, ValueError, _NoImage) as error:
            # Which name led where is for the operator, not for who asks. A TimeoutError is an
            # OSError.
            _log.warning(
                "an image could not be fetched",
                extra={"host": URL(uri, encoded=True).host, "cause": _cause(error)},
            )
            raise FetchError("could not be fetched") from None


async def _body(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    if answer.status != 200:
        raise _NoImage(f"was answered with status {answer.status}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise _NoImage("came compressed, which was not asked for")
    found = bytearray()
    # What the header says of the length may be wrong: what comes is counted.
    async for piece in answer.content.iter_chunked(_PIECE):
        found += piece
        if len(found) > most_bytes:
            raise FetchError(f"is larger than {most_bytes} bytes")
    return bytes(found)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


class _CheckedResolver(AbstractResolver):
    """Resolves names to those of their numbers that may be connected to."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError where none is left."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        allowed = [
            _numeric(host, address, kind, protocol)
            for kind, _, protocol, _, address in found
            if may_connect(str(address[0]), self._networks)
        ]
        if not allowed:
            raise OSError(errno.EACCES, "the name leads to no address that may be connected to")
        return allowed

    async def close(self) -> None:
        """Holds nothing."""


def _numeric(host: str, address: Any, family: int, protocol: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address[0]),
        port=int(address[1]),
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST,
    )
