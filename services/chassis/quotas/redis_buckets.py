"""The buckets of gcra.py in Redis, for processes that count together: one script, on its clock.

Several calls leave in one pipeline. What is counted instead while Redis does not answer, and how
soon that is noticed, is shared_buckets.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from services.chassis.quotas.gcra import LONGEST, Charge

# A string for each bucket: its theoretical arrival time in microseconds. The keys of one call
# have the same hash tag. Of what was let through while Redis was away, a process says how far ahead
# the bucket is at least, as far as it knows, and what it adds to what Redis remembers. Numbers are
# doubles, exact up to 2^53; LONGEST keeps them below.
_SCRIPT = f"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function put(key, arrival)
    arrival = math.min(arrival, now + {LONGEST})
    if arrival <= now then
        redis.call('DEL', key)
    else
        redis.call('SET', key, string.format('%.0f', arrival),
            'PX', string.format('%.0f', math.ceil((arrival - now) / 1000)))
    end
end
if ARGV[1] == 'settle' then
    for at, key in ipairs(KEYS) do
        local change = tonumber(ARGV[at + 1])
        local arrival = math.max(tonumber(redis.call('GET', key) or '0'), now)
        put(key, arrival + change)
    end
    return {{}}
end
local arrivals, waits, taken = {{}}, {{}}, true
for at, key in ipairs(KEYS) do
    local increment, tolerance = tonumber(ARGV[4 * at - 2]), tonumber(ARGV[4 * at - 1])
    local ahead, untold = tonumber(ARGV[4 * at]), tonumber(ARGV[4 * at + 1])
    local known = tonumber(redis.call('GET', key) or '0')
    arrivals[at] = math.min(math.max(known + untold, now + ahead), now + {LONGEST})
    waits[at] = math.max(arrivals[at] - now + math.min(increment, tolerance) - tolerance, 0)
    taken = taken and waits[at] == 0
end
local reply = {{}}
for at, key in ipairs(KEYS) do
    if taken then
        arrivals[at] = arrivals[at] + tonumber(ARGV[4 * at - 2])
    end
    if taken or ARGV[4 * at] ~= '0' or ARGV[4 * at + 1] ~= '0' then
        put(key, arrivals[at])
    end
    reply[2 * at - 1] = waits[at]
    reply[2 * at] = math.min(arrivals[at] - now, {LONGEST})
end
return reply
"""


class Known(NamedTuple):
    """What a process knows of a bucket and Redis does not: how far ahead it is at least, and how
    much was let through since Redis was last looked for. Microseconds."""

    ahead: int
    untold: int


class Take(NamedTuple):
    """Charges to be taken together, and what is known of each one's bucket."""

    charges: tuple[Charge, ...]
    known: tuple[Known, ...]


class Settle(NamedTuple):
    """Corrections of buckets of one tenant, in microseconds; see Buckets.settle."""

    corrections: tuple[tuple[str, int], ...]


class Taken(NamedTuple):
    """How long each charge has to wait, all 0 when they were taken; and how far ahead of now its
    bucket is after that. Microseconds."""

    waits: tuple[int, ...]
    ahead: tuple[int, ...]


NOTHING = Taken((), ())


class RedisBuckets:
    """Buckets under one `prefix` of Redis's keys; the rest of a key is whoever asks."""

    def __init__(self, redis: Redis, *, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._script = redis.register_script(_SCRIPT)

    async def perform(self, calls: Sequence[Take | Settle]) -> list[Taken]:
        """Does all calls, in this order; to a Settle the answer is NOTHING.

        Raises RedisError or OSError when one of them failed; others may have been done.
        """
        commands = [self._command(call) for call in calls]
        replies = await self._send(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # Redis was restarted, and none of them was done.
            await self._redis.script_load(_SCRIPT)
            replies = await self._send(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [_read(call, reply) for call, reply in zip(calls, replies, strict=True)]

    async def _send(self, commands: Sequence[list[object]]) -> list[object]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command("EVALSHA", self._script.sha, *command)
            return await pipe.execute(raise_on_error=False)

    def _command(self, call: Take | Settle) -> list[object]:
        if isinstance(call, Settle):
            keys = [self._prefix + key for key, _ in call.corrections]
            return [len(keys), *keys, "settle", *(change for _, change in call.corrections)]
        keys = [self._prefix + charge.key for charge in call.charges]
        numbers: list[int] = []
        for charge, known in zip(call.charges, call.known, strict=True):
            numbers += (charge.increment, charge.tolerance, known.ahead, known.untold)
        return [len(keys), *keys, "take", *numbers]


def _read(call: Take | Settle, reply: object) -> Taken:
    if isinstance(call, Settle):
        return NOTHING
    if not isinstance(reply, list) or len(reply) != 2 * len(call.charges):
        raise RedisError("not an answer to this question")
    numbers = [int(number) for number in reply]
    return Taken(tuple(numbers[::2]), tuple(numbers[1::2]))
