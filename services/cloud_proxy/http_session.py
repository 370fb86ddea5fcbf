"""The pooled HTTP session, the way through proxies, and the ways of reading a response to its end.

How the process connects, in one place; what is asked and answered is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp

from services.chassis.settings import Secret
from services.cloud_proxy.streams import StreamTooLarge

_log = logging.getLogger(__name__)

# A connection is only used again once its response is read to the end; that is worth this much.
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 64 * 1024
_KEEPALIVE_SECONDS = 60.0
_WARM_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """The HTTP proxy for what leaves; `but_for` lists hosts as NO_PROXY does."""

    url: Secret | None = None
    but_for: str = ""


class Http:
    """The session that every request of the process shares."""

    def __init__(self, session: aiohttp.ClientSession, proxy: Proxy) -> None:
        self.session = session
        self._proxy = proxy

    def proxy_for(self, url: str) -> str | None:
        """The proxy that a request to this address goes through, if one."""
        if self._proxy.url is None:
            return None
        host = urlsplit(url).netloc.rpartition("@")[2]
        if proxy_bypass_environment(host, {"no": self._proxy.but_for}):
            return None
        return self._proxy.url.reveal()

    async def warm(self, base_urls: Iterable[str]) -> None:
        """Opens a connection to each address, so that no first request waits for the handshakes.

        Asks without a credential, and what is answered does not matter: only that it is read to
        its end, after which the connection is free. Answers to HEAD often keep it open to no end.
        """
        async with asyncio.TaskGroup() as group:
            for url in sorted(set(base_urls)):
                group.create_task(self._warm(url))

    async def _warm(self, url: str) -> None:
        host = urlsplit(url).hostname
        try:
            async with (
                asyncio.timeout(_WARM_SECONDS),
                self.session.get(url, allow_redirects=False, proxy=self.proxy_for(url)) as response,
            ):
                await drain(response)
                _log.debug("connected", extra={"host": host, "http_status": response.status})
        except (aiohttp.ClientError, TimeoutError) as error:
            # Requests will say so themselves; this is to be seen before the first one.
            _log.warning(
                "a provider cannot be reached",
                extra={"host": host, "cause": type(error).__name__},
            )


@asynccontextmanager
async def open_http(
    connect_timeout: float, ca_file: Path | None, *, connections: int, proxy: Proxy
) -> AsyncIterator[Http]:
    """The session, with at most so many connections. Certificates are always verified."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    connector = aiohttp.TCPConnector(
        limit=connections, ssl=context, ttl_dns_cache=60, keepalive_timeout=_KEEPALIVE_SECONDS
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Compressed streams are delayed by the compressor, and can be bombs.
        headers={"Accept-Encoding": "identity", "User-Agent": "anabranch"},
        # The environment and ~/.netrc are not ours to read: the settings name the proxy.
        trust_env=False,
    ) as session:
        yield Http(session, proxy)


async def read_body(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The whole body. Raises StreamTooLarge past `cap` bytes, aiohttp.ClientError when cut."""
    parts: list[bytes] = []
    size = 0
    while data := await response.content.readany():
        size += len(data)
        if size > cap:
            raise StreamTooLarge("the response is over its cap")
        parts.append(data)
    return b"".join(parts)


async def drain(response: aiohttp.ClientResponse) -> None:
    """Reads what follows the terminal marker, so that the connection can be used again."""
    with suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            size = 0
            while data := await response.content.readany():
                size += len(data)
                if size > _DRAIN_BYTES:
                    return
