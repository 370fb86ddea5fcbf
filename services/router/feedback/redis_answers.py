"""The latest answers of all routers in Redis, on its clock, so that any of them takes feedback.

What is remembered leaves in the background, together with others'. Redis is told a digest of the
two ids, and by whom it was answered; see redis_connection.py for how a failing one is treated.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.redis_connection import LONGEST_S
from services.router.feedback.answers import (
    Answered,
    Judged,
    Judgement,
    judged_otherwise,
    unknown,
)

_log = logging.getLogger(__name__)

_KEYS = tuple(f"anabranch:{{feedback}}:{part}" for part in ("given", "order", "judged"))
# For this long others may join what is to be written: a command costs more than many answers in it.
_GATHER_S = 0.02
_BATCH = 200
_MOST_WAITING = 10_000
_REST_S = 1.0
# Just after its end, the answer of another process may still be on its way to Redis.
_SECOND_LOOK_S = 0.15
_OTHERWISE = b"otherwise"

# given: digest -> "<milliseconds> <by whom>"; order: digests, the oldest first; judged: digest ->
# "<rating> <completed>", each a digit or empty. Where Redis has evicted one of the three, their
# bound would no longer hold, so the others go as well.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_REMEMBER = f"""{_NOW}
local most, window = tonumber(ARGV[1]), ARGV[2]
if redis.call('HLEN', KEYS[1]) ~= redis.call('LLEN', KEYS[2]) then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
end
for at = 3, #ARGV, 2 do
    local value = string.format('%.0f', now) .. ' ' .. ARGV[at + 1]
    if redis.call('HSET', KEYS[1], ARGV[at], value) == 1 then
        redis.call('RPUSH', KEYS[2], ARGV[at])
    end
end
for _ = 1, redis.call('LLEN', KEYS[2]) - most do
    local oldest = redis.call('LPOP', KEYS[2])
    redis.call('HDEL', KEYS[1], oldest)
    redis.call('HDEL', KEYS[3], oldest)
end
for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, window)
end
"""
_JUDGE = f"""{_NOW}
local digest, window, rating, completed = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('HGET', KEYS[1], digest)
if not found then
    return {{}}
end
local since, answered = string.match(found, '^(%d+) (.*)$')
if now - tonumber(since) > tonumber(window) then
    return {{}}
end
local known = redis.call('HGET', KEYS[3], digest) or ' '
local rated, done = string.match(known, '^(%d?) (%d?)$')
local function differs(before, after)
    return before ~= '' and after ~= '' and before ~= after
end
if differs(rated, rating) or differs(done, completed) then
    return {{answered, 'otherwise'}}
end
local function first(before, after)
    return before ~= '' and before or after
end
redis.call('HSET', KEYS[3], digest, first(rated, rating) .. ' ' .. first(done, completed))
redis.call('PEXPIRE', KEYS[3], window)
return {{answered, rated == '' and rating or '', done == '' and completed or ''}}
"""


class RedisAnswers:
    """At most `most` answers of all who share a Redis, for `window` seconds. See Answers.

    `run` writes while the process serves, `finish` what is left at its end. The client is
    somebody else's.
    """

    shared = True

    def __init__(self, redis: Redis, *, most: int, window: float) -> None:
        self._most = most
        self._window_ms = max(round(window * 1000), 1)
        self._remember = redis.register_script(_REMEMBER)
        self._judge = redis.register_script(_JUDGE)
        # The latest ones: of what nobody takes, the oldest are let go.
        self._waiting: deque[tuple[str, str, Answered]] = deque(maxlen=_MOST_WAITING)
        self._sending: list[tuple[str, str, Answered]] = []
        self._ring = asyncio.Event()
        self._answers = True

    def remember(self, client_id: str, request_id: str, answered: Answered) -> None:
        """See Answers. Redis has it a moment later."""
        self._waiting.append((client_id, request_id, answered))
        self._ring.set()

    async def judge(self, client_id: str, request_id: str, judgement: Judgement) -> Judged:
        """See Answers. Raises Fault DEPENDENCY_UNAVAILABLE while Redis does not answer."""
        rating = "" if judgement.rating is None else str(judgement.rating)
        completed = "" if judgement.completed is None else str(int(judgement.completed))
        asked = (_digest(client_id, request_id), self._window_ms, rating, completed)
        reply = await self._ask(asked)
        if not reply:
            await asyncio.sleep(_SECOND_LOOK_S)
            reply = await self._ask(asked)
        if not reply:
            raise unknown()
        if reply[1] == _OTHERWISE:
            raise judged_otherwise()
        answered, new_rating, new_completed = reply
        model, tier, backend_id = orjson.loads(answered)
        return Judged(
            (model, tier, backend_id),
            Judgement(
                int(new_rating) if new_rating else None,
                new_completed == b"1" if new_completed else None,
            ),
        )

    async def run(self) -> None:
        """Writes what is remembered, until it is cancelled."""
        while True:
            await self._ring.wait()
            self._ring.clear()
            await asyncio.sleep(_GATHER_S)
            if not await self._write():
                await asyncio.sleep(_REST_S)
                self._ring.set()

    async def finish(self) -> None:
        """Writes what waits, if Redis takes it at once. After `run` has ended."""
        await self._write()

    async def _write(self) -> bool:
        """Whether all that waited is written."""
        while self._sending or self._waiting:
            while self._waiting and len(self._sending) < _BATCH:
                self._sending.append(self._waiting.popleft())
            pairs: list[Any] = [self._most, self._window_ms]
            for client_id, request_id, answered in self._sending:
                pairs += (_digest(client_id, request_id), orjson.dumps(answered))
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._remember(keys=_KEYS, args=pairs)
            except (RedisError, OSError) as error:
                self._tell(type(error).__name__)
                return False
            self._sending.clear()
            self._tell("")
        return True

    async def _ask(self, arguments: tuple[Any, ...]) -> list[bytes]:
        try:
            async with asyncio.timeout(LONGEST_S):
                reply: list[bytes] = await self._judge(keys=_KEYS, args=arguments)
                return reply
        except (RedisError, OSError) as error:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the store of answers does not respond; ask again",
                retry_after=1.0,
            ) from error

    def _tell(self, failure: str) -> None:
        """Says once that answers are not remembered, and once that they are again."""
        if failure and self._answers:
            _log.warning("answers cannot be remembered", extra={"cause": failure})
        elif not failure and not self._answers:
            _log.info("answers are remembered again")
        self._answers = not failure


def _digest(client_id: str, request_id: str) -> bytes:
    # A request id holds no blank, so no two pairs of ids make the same text.
    return hashlib.blake2b(f"{request_id} {client_id}".encode(), digest_size=16).digest()
