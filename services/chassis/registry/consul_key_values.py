"""Documents in Consul's key/value store: read, written if unchanged, and watched.

Which entry is in force after an outage is decided in key_values.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import consul.aio

from services.chassis.registry import consul_client
from services.chassis.registry.consul_client import TROUBLE, reason, set_within, soon
from services.chassis.registry.key_values import Entry, KeyValuesUnavailable, LastValue

_log = logging.getLogger(__name__)
T = TypeVar("T")


class ConsulKeyValues:
    """Speaks to one Consul agent; owns the client until closed."""

    def __init__(self, client: consul.aio.Consul, *, rng: random.Random | None = None) -> None:
        self._consul = client
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._closed = asyncio.Event()

    async def get(self, key: str) -> Entry:
        # Consistent: what it says decides whether something may be overwritten.
        _, row = await _asked(soon(self._consul.kv.get(key, consistency="consistent")))
        return _entry(row)

    async def put(self, key: str, value: bytes, index: int) -> bool:
        return bool(await _asked(soon(self._consul.kv.put(key, value, cas=index))))

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        known = LastValue()
        clock = asyncio.get_running_loop().time
        index, failures = 0, 0
        while not self._closed.is_set():
            started, pause, changed = clock(), consul_client.FLOOR, None
            try:
                answer, entry = await self._ask(key, index)
            except TROUBLE as trouble:
                if self._closed.is_set():
                    return
                failures += 1
                # An agent that restarts counts from the beginning, so the old index means nothing.
                index = 0
                pause = consul_client.back_off(failures, self._rng)
                known.failed()
                if failures in (1, 10):
                    _log.warning(
                        "key/value store does not answer, keeping what is known: %s",
                        reason(trouble),
                        extra={"watched": key, "failures": failures},
                    )
            else:
                if failures:
                    _log.info("key/value store answers again", extra={"watched": key})
                failures = 0
                # Going backwards means a restored or restarted server: begin anew.
                memory_lost = answer < index
                index = 0 if memory_lost else max(1, answer)
                was_kept = known.is_kept and not memory_lost
                changed = known.answered(entry, memory_lost=memory_lost)
                if known.is_kept and not was_kept:
                    _log.warning(
                        "the value is gone since an outage; what is known stays in force until it "
                        "is written again",
                        extra={"watched": key},
                    )
            if changed is not None:
                yield changed
            left = pause - (clock() - started)
            if left > 0:
                await set_within(self._closed, left)

    async def close(self) -> None:
        self._closed.set()
        await self._consul.close()

    async def _ask(self, key: str, index: int) -> tuple[int, Entry]:
        wait = consul_client.WAIT + self._rng.uniform(0, consul_client.WAIT_JITTER)
        blocks_for = wait * 17 / 16 if index else 0.0
        async with asyncio.timeout(blocks_for + consul_client.ANSWER_WITHIN):
            answer, row = await self._consul.kv.get(
                key, index=index or None, wait=f"{int(wait * 1000)}ms"
            )
        return int(answer), _entry(row)


async def _asked(call: Awaitable[T]) -> T:
    try:
        return await call
    except TROUBLE as trouble:
        raise KeyValuesUnavailable(reason(trouble)) from trouble


def _entry(row: Any) -> Entry:
    if row is None:
        return Entry()
    # An empty value is null in Consul's answer.
    return Entry(row["Value"] or b"", int(row["ModifyIndex"]))
