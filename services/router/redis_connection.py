"""The router's connections to Redis: few, and none that anybody waits on for long.

What is asked of Redis, and what happens while it is away, is known where it is used.
"""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.chassis.settings import Secret

_CONNECTIONS = 16
_LONGEST_S = 1.0


def open_redis(url: Secret) -> Redis:
    """A client that connects when it is first used; whoever opens it closes it with `aclose`.

    Each step of a command (waiting for a connection, making one, the reply) ends after a second,
    and nothing is repeated: who asks knows better whether that is worth it. Raises ValueError for
    a URL that is none; its text does not hold the URL.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url.reveal(),
            max_connections=_CONNECTIONS,
            timeout=_LONGEST_S,
            socket_timeout=_LONGEST_S,
            socket_connect_timeout=_LONGEST_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except (ValueError, TypeError):
        raise ValueError("is not a Redis URL such as redis://:password@host:6379/0") from None
    return Redis.from_pool(pool)
