"""The pooled HTTP session and the two ways of reading a response to its end.

How the process connects, in one place; what is asked and answered is not known here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from services.cloud_proxy.streams import StreamTooLarge

# A connection is only used again once its response is read to the end; that is worth this much.
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 64 * 1024


@asynccontextmanager
async def open_session(
    connect_timeout: float, ca_file: Path | None
) -> AsyncIterator[aiohttp.ClientSession]:
    """The session that every request of the process shares. Certificates are always verified."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    # In-flight requests are bounded by the handler, so the pool itself needs no second bound.
    connector = aiohttp.TCPConnector(limit=0, ssl=context, ttl_dns_cache=60, keepalive_timeout=30)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Compressed streams are delayed by the compressor, and can be bombs.
        headers={"Accept-Encoding": "identity", "User-Agent": "anabranch"},
        trust_env=False,
    ) as session:
        yield session


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
