"""How a Consul agent is reached: its address as a URL, its client, and its ways to fail.

Together with the modules beside it that use the client, the only place that knows Consul.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import consul
import consul.aio

from services.chassis.setting_values import Secret

T = TypeVar("T")

# s, the longest blocking query; Consul itself adds up to a sixteenth. An agent that restarts
# between two queries counts from below our index, and lets us wait in vain for as long as this.
WAIT = 10.0
WAIT_JITTER = 2.0
FLOOR = 0.2  # s between the starts of two queries, however often the index moves
_BACK_OFF_FIRST, _BACK_OFF_MOST = 0.25, 5.0
_PARAMETERS = {"dc", "ns", "partition", "tls", "ca", "cert", "key"}
ANSWER_WITHIN = 3.0  # s for a call that does not block
TROUBLE = (
    consul.ConsulException,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)
"""What a Consul that is down, leaderless, restarting or not Consul at all makes a call raise."""


class _Consul(consul.aio.Consul):  # type: ignore[misc]
    """A client whose every call is about one namespace and partition, which Enterprise has.

    The library has no word for them; Consul takes them as headers of any request.
    """

    def __init__(self, *, namespace: str, partition: str, **connection: Any) -> None:
        named = {"X-Consul-Namespace": namespace, "X-Consul-Partition": partition}
        self._named = {header: name for header, name in named.items() if name}
        super().__init__(**connection)

    def prepare_headers(self, token: str | None = None) -> dict[str, str]:
        return {**super().prepare_headers(token), **self._named}


def client_from_url(url: str, token: Secret | None) -> consul.aio.Consul:
    """Opens `consul://host:port?dc=…&ns=…&partition=…&tls=…&ca=…&cert=…&key=…`.

    ValueError if it is not that.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(query) - _PARAMETERS:
        raise ValueError(f"the Consul URL has unknown parameters: {', '.join(sorted(unknown))}")
    if parts.path not in ("", "/") or parts.username or not parts.hostname:
        raise ValueError("a Consul URL is consul://host:port?dc=…&tls=…")
    tls = {"true": True, "false": False}.get(query.get("tls", "false"))
    if tls is None:
        raise ValueError("the parameter tls of the Consul URL is true or false")
    if bool(query.get("cert")) != bool(query.get("key")):
        raise ValueError("the Consul URL needs both cert and key, or neither")
    # Everything explicit: what is left out, this client would read from the environment.
    client = _Consul(
        namespace=query.get("ns", ""),
        partition=query.get("partition", ""),
        host=parts.hostname,
        port=parts.port or 8500,
        scheme="https" if tls else "http",
        dc=query.get("dc") or None,
        verify=tls and (query.get("ca") or True),
        cert=(query["cert"], query["key"]) if query.get("cert") else None,
    )
    client.token = token.reveal() if token else None
    return client


def back_off(failures: int, rng: random.Random) -> float:
    """Seconds until the next try after so many failures in a row."""
    longest: float = min(_BACK_OFF_MOST, _BACK_OFF_FIRST * 2 ** min(failures, 10))
    return longest * rng.uniform(0.5, 1.0)


async def soon(call: Awaitable[T]) -> T:
    """The result of a call that does not block. Raises TimeoutError."""
    async with asyncio.timeout(ANSWER_WITHIN):
        return await call


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for an event for so long; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


def reason(trouble: BaseException) -> str:
    """A failure in one line, for logs."""
    return f"{type(trouble).__name__}: {trouble}"[:300] if str(trouble) else type(trouble).__name__
