"""A process's connections to Redis: few, and none that anybody waits on for long.

What is asked of Redis, and what happens while it is away, is known where it is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.chassis.settings import Secret, SettingsError

LONGEST_S = 1.0
"""For any one command; see open_redis."""

_CONNECTIONS = 16


def open_redis(url: Secret) -> Redis:
    """A client that connects when it is first used; whoever opens it closes it with `aclose`.

    Who uses it bounds each command by `asyncio.timeout(LONGEST_S)`: the client's own limit for
    replies would make a task that is cancelled while it sends go on as if it were not. Nothing is
    repeated: who asks knows better whether that is worth it. Raises ValueError for a URL that is
    none; its text does not hold the URL.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url.reveal(),
            max_connections=_CONNECTIONS,
            timeout=LONGEST_S,
            socket_connect_timeout=LONGEST_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except (ValueError, TypeError):
        raise ValueError("is not a Redis URL such as redis://:password@host:6379/0") from None
    # After the URL, which may say otherwise.
    pool.connection_kwargs["socket_timeout"] = None
    return Redis.from_pool(pool)


@asynccontextmanager
async def redis_client(url: Secret | None, setting: str) -> AsyncIterator[Redis | None]:
    """The client of the Redis at `url`, or None where there is none; closed at the end.

    Raises SettingsError that names the `setting` with a bad URL.
    """
    if url is None:
        yield None
        return
    try:
        client = open_redis(url)
    except ValueError as refused:
        raise SettingsError([f"{setting} {refused}"]) from None
    try:
        yield client
    finally:
        await client.aclose()
