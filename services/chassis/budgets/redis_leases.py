"""Budgets shared by many processes: Redis hands them out in slices, on its own clock.

One script decides, so that whatever processes do at the same time, no period's slices are together
more than its budget. While Redis does not answer nothing is handed out, and a process spends what
it has. Which slices are asked for when, supply.py knows.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.chassis.budgets.leases import Lease
from services.chassis.budgets.ledger import Budget
from services.chassis.redis_connection import LONGEST_S

_log = logging.getLogger(__name__)

_PER_SECOND = 1_000_000
_FEW = 1000

# A hash for each account and length of period: `start` of the period that it is about, what each
# lessee holds of it, and the number of each one's last call. A lessee says with each call what it
# holds, and that is believed: a reply that was lost, or a Redis that forgot, leaves nothing wrong
# behind its next call. A call that another one of the same lessee has overtaken changes nothing.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lessee, call = ARGV[1], tonumber(ARGV[2])
local held_since, held, want = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local budget, period = tonumber(ARGV[6]), tonumber(ARGV[7])
local known = tonumber(redis.call('HGET', KEYS[1], 'start') or '0')
-- A clock that was set back opens no period a second time.
local start = math.max(now - now % period, known)
if known < start then
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'start', string.format('%.0f', start))
end
local last = tonumber(redis.call('HGET', KEYS[1], 'call:' .. lessee) or '0')
if call <= last then
    return {call, -1, start, start + period}
end
if held_since ~= start then
    held = 0
end
local left = budget - held
local entries = redis.call('HGETALL', KEYS[1])
for at = 1, #entries, 2 do
    local name = entries[at]
    if string.sub(name, 1, 5) == 'held:' and name ~= 'held:' .. lessee then
        left = left - tonumber(entries[at + 1])
    end
end
local granted = math.max(math.min(want, left), 0)
redis.call('HSET', KEYS[1], 'held:' .. lessee, string.format('%.0f', held + granted),
    'call:' .. lessee, string.format('%.0f', call))
redis.call('PEXPIRE', KEYS[1], math.ceil(period / 500))
return {call, granted, start, start + period}
"""


class _Held(NamedTuple):
    """What this process holds of an account, in a period; times in microseconds."""

    start: int
    amount: int
    end: int = 0


class RedisLeases:
    """The slices of one process; see LeaseSource. `epoch_clock` is that of whoever spends them.

    Who shares budgets uses the same `prefix` of Redis's keys, and nobody else does: an account of
    the same name under another one is another account.

    The budget is as hard as Redis's memory: one that forgets a period hands out again what
    processes hold of it, until each has asked once more.
    """

    def __init__(self, redis: Redis, epoch_clock: Callable[[], float], *, prefix: str) -> None:
        self._prefix = prefix
        self._script = redis.register_script(_SCRIPT)
        self._now = epoch_clock
        self._lessee = secrets.token_hex(8)
        self._calls = 0
        self._held: dict[str, _Held] = {}
        self._looked_through_at = _FEW
        # What a process holds is said with each call, so there is one call at a time.
        self._turn = asyncio.Lock()
        self._answers = True

    async def take(self, account: str, budget: Budget, want: int) -> Lease | None:
        """Up to `want` of an account's budget; None while Redis does not say."""
        async with self._turn:
            try:
                reply = await self._call(account, budget, want)
            except asyncio.CancelledError:
                # Nobody gets what that call may have been granted, and Redis is told so.
                await self._call(account, budget, 0)
                raise
            if reply is None:
                return None
            granted, start, end = reply
            if end <= self._now() * _PER_SECOND:
                # The clocks differ, and here that period is over: the next call gives it back.
                return None
            key = _key(account, budget)
            self._held[key] = _Held(start, self._holds(key, start) + granted, end)
            self._forget_periods_that_are_over()
            return Lease(granted, start / _PER_SECOND, end / _PER_SECOND)

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        """Returns `amount` of the period that ends then; later, if Redis does not answer now."""
        async with self._turn:
            key = _key(account, budget)
            held = self._held.get(key)
            if held is None or held.end / _PER_SECOND != period_end:
                return
            self._held[key] = held._replace(amount=max(held.amount - amount, 0))
            # At the end of a process there may be much to give back, and nobody to wait for.
            if self._answers:
                await self._call(account, budget, 0)

    def _forget_periods_that_are_over(self) -> None:
        if len(self._held) > self._looked_through_at:
            now = self._now() * _PER_SECOND
            self._held = {key: held for key, held in self._held.items() if held.end > now}
            self._looked_through_at = max(2 * len(self._held), _FEW)

    def _holds(self, key: str, start: int) -> int:
        held = self._held.get(key)
        return held.amount if held is not None and held.start == start else 0

    async def _call(self, account: str, budget: Budget, want: int) -> tuple[int, int, int] | None:
        """What was granted, and start and end of the period; None when nobody said."""
        key = _key(account, budget)
        held = self._held.get(key, _Held(0, 0))
        self._calls += 1
        try:
            async with asyncio.timeout(LONGEST_S):
                reply = await self._script(
                    keys=[self._prefix + key],
                    args=[
                        *(self._lessee, self._calls, held.start, held.amount),
                        *(want, budget.microusd, _period(budget)),
                    ],
                )
            call, granted, start, end = reply
        except (RedisError, OSError, TypeError, ValueError) as error:
            self._tell(type(error).__name__)
            return None
        # Another call's reply would be another account's money.
        if call != self._calls or granted < 0:
            self._tell("a reply to another call")
            return None
        self._tell("")
        return granted, start, end

    def _tell(self, failure: str) -> None:
        """Says once that no money is handed out, and once that it is again."""
        if failure and self._answers:
            _log.warning("budgets cannot be leased", extra={"cause": failure})
        elif not failure and not self._answers:
            _log.info("budgets are leased again")
        self._answers = not failure


def _key(account: str, budget: Budget) -> str:
    # The period is part of it: two lengths of period have nothing to do with each other.
    return f"{_period(budget)}:{account}"


def _period(budget: Budget) -> int:
    return max(round(budget.period * _PER_SECOND), 1)
