"""Kept answers in Redis, shared by all routers; Redis forgets them when their time is over."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from anabranch.v1 import generation_pb2 as pb
from services.chassis.redis_connection import LONGEST_S
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.stored_form import PlainForm, StoredForm
from services.router.response_cache.tiers import TierFailed

_PREFIX = "anabranch:answer:"


class RedisTier:
    """Entries under a prefix of their own. The client is somebody else's, who closes it."""

    source: pb.CacheSource = pb.CACHE_SOURCE_REDIS
    held: None = None

    def __init__(self, redis: Redis, form: StoredForm | None = None) -> None:
        self._redis = redis
        self._form = form or PlainForm()

    async def open(self) -> None:
        """Makes sure of one connection, so that no request waits for the first."""
        async with _bounded():
            await self._redis.ping()

    async def get(self, key: AnswerKey, longest: int) -> Entry | None:
        """See Tier. No more is read than an entry may have."""
        limit = self._form.packed_size(longest)
        async with _bounded():
            raw = await self._redis.getrange(_name(key), 0, limit)
        if not isinstance(raw, bytes) or not 0 < len(raw) <= limit:
            return None
        try:
            entry = await self._form.unpack(key, raw)
        except ValueError:
            # Should another router have replaced it meanwhile, its answer is missed once.
            async with _bounded():
                await self._redis.unlink(_name(key))
            return None
        return entry if entry.size <= longest else None

    async def put(self, key: AnswerKey, entry: Entry, ttl: float) -> None:
        """See Tier."""
        async with _bounded():
            await self._redis.set(_name(key), await self._form.pack(key, entry), ex=math.ceil(ttl))

    async def close(self) -> None:
        """Nothing is its own."""


def _name(key: AnswerKey) -> str:
    return _PREFIX + key.digest.hex()


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(LONGEST_S):
            yield
    except (RedisError, OSError) as error:
        raise TierFailed(type(error).__name__) from error
