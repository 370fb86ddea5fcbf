"""The registry kept by a Consul agent: registration with a gRPC health check, and watches.

It is the only module that imports the Consul client. Which set is in force after an outage is
decided in last_known.py; what to do with the instances is the caller's business.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import consul
import consul.aio

from services.chassis.registry.instances import (
    Instance,
    Registration,
    join_address,
    split_address,
)
from services.chassis.registry.last_known import LastKnown
from services.chassis.setting_values import Secret

_log = logging.getLogger(__name__)
T = TypeVar("T")

# s, the longest blocking query; Consul itself adds up to a sixteenth. An agent that restarts
# between two queries counts from below our index, and lets us wait in vain for as long as this.
_WAIT = 10.0
_WAIT_JITTER = 2.0
_FLOOR = 0.2  # s between the starts of two queries, however often the index moves
_BACK_OFF_FIRST, _BACK_OFF_MOST = 0.25, 5.0
_ANSWER_WITHIN = 3.0  # s for a call that does not block
_VERIFY_EVERY = 2.0  # s between checks that the agent still knows us
_TROUBLE = (
    consul.ConsulException,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    ValueError,
    KeyError,
    TypeError,
)
"""What a Consul that is down, leaderless, restarting or not Consul at all makes a call raise."""


def from_url(url: str, *, token: Secret | None, stale_for: float, grace: float) -> ConsulRegistry:
    """Opens `consul://host:port?dc=…&tls=…&ca=…&cert=…&key=…`; ValueError if it is not that."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(query) - {"dc", "tls", "ca", "cert", "key"}:
        raise ValueError(f"the Consul URL has unknown parameters: {', '.join(sorted(unknown))}")
    if parts.path not in ("", "/") or parts.username or not parts.hostname:
        raise ValueError("a Consul URL is consul://host:port?dc=…&tls=…")
    tls = {"true": True, "false": False}.get(query.get("tls", "false"))
    if tls is None:
        raise ValueError("the parameter tls of the Consul URL is true or false")
    if bool(query.get("cert")) != bool(query.get("key")):
        raise ValueError("the Consul URL needs both cert and key, or neither")
    # Everything explicit: what is left out, this client would read from the environment.
    client = consul.aio.Consul(
        host=parts.hostname,
        port=parts.port or 8500,
        scheme="https" if tls else "http",
        dc=query.get("dc") or None,
        verify=tls and (query.get("ca") or True),
        cert=(query["cert"], query["key"]) if query.get("cert") else None,
    )
    client.token = token.reveal() if token else None
    return ConsulRegistry(client, stale_for=stale_for, grace=grace)


class ConsulRegistry:
    """Speaks to one Consul agent; owns the client and a task per registration until closed."""

    def __init__(
        self,
        client: consul.aio.Consul,
        *,
        stale_for: float = 3600.0,
        grace: float = 10.0,
        rng: random.Random | None = None,
    ) -> None:
        self._consul = client
        self._stale_for = stale_for
        self._grace = grace
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._closed = asyncio.Event()
        self._kept: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}

    async def register(self, r: Registration) -> None:
        await self._stop_keeping(r.id)
        try:
            await self._put(r)
        except _TROUBLE as trouble:
            _log.warning("not registered yet: %s", _reason(trouble), extra={"instance": r.id})
        stop = asyncio.Event()
        task = asyncio.create_task(self._keep(r, stop), name=f"registration {r.id}")
        self._kept[r.id] = (task, stop)

    async def deregister(self, id: str) -> None:
        await self._stop_keeping(id)
        for attempt in (1, 2):
            try:
                await _soon(self._consul.agent.service.deregister(id))
                return
            except _TROUBLE as trouble:
                # The agent removes us by itself a minute after our health check stops answering.
                _log.warning(
                    "deregistration failed: %s",
                    _reason(trouble),
                    extra={"instance": id, "attempt": attempt},
                )

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        known = LastKnown(self._stale_for, self._grace)
        clock = asyncio.get_running_loop().time
        index, failures = 0, 0
        while not self._closed.is_set():
            started, pause = clock(), _FLOOR
            wait = _WAIT + self._rng.uniform(0, _WAIT_JITTER)
            left = known.seconds_of_grace(started)
            wait = wait if left is None else min(wait, left)
            try:
                answer, rows = await self._ask(service, index, max(0.05, wait))
                instances = _instances(service, rows)
            except _TROUBLE as trouble:
                if self._closed.is_set():
                    return
                failures += 1
                # An agent that restarts counts from the beginning, so the old index means nothing.
                index = 0
                pause = min(_BACK_OFF_MOST, _BACK_OFF_FIRST * 2 ** min(failures, 10))
                pause *= self._rng.uniform(0.5, 1.0)
                changed = known.failed(clock())
                if failures in (1, 10):
                    _log.warning(
                        "registry does not answer, keeping what is known: %s",
                        _reason(trouble),
                        extra={"watched": service, "failures": failures},
                    )
            else:
                if failures:
                    _log.info("registry answers again", extra={"watched": service})
                failures = 0
                # Going backwards means a restored or restarted server: begin anew.
                memory_lost = answer < index
                index = 0 if memory_lost else max(1, answer)
                changed = known.answered(instances, memory_lost=memory_lost, now=clock())
            if changed is not None:
                yield changed
            await self._pause(pause - (clock() - started))

    async def close(self) -> None:
        self._closed.set()
        for id in list(self._kept):
            await self._stop_keeping(id)
        await self._consul.close()

    async def _ask(self, service: str, index: int, wait: float) -> tuple[int, list[Any]]:
        blocks_for = wait * 17 / 16 if index else 0.0
        async with asyncio.timeout(blocks_for + _ANSWER_WITHIN):
            answer, rows = await self._consul.health.service(
                service, passing=True, index=index or None, wait=f"{int(wait * 1000)}ms"
            )
        if not isinstance(rows, list):
            raise ValueError("the answer holds no list of instances")
        return int(answer), rows

    async def _put(self, r: Registration) -> None:
        host, port = split_address(r.address)
        check = {
            "CheckID": f"service:{r.id}",
            "Name": "grpc.health.v1",
            "GRPC": r.health_address or r.address,
            "GRPCUseTLS": r.health_tls,
            "Interval": "1s",
            "Timeout": "2s",
            "DeregisterCriticalServiceAfter": "1m",
        }
        accepted = await _soon(
            self._consul.agent.service.register(
                r.service, service_id=r.id, address=host, port=port, meta=dict(r.meta), check=check
            )
        )
        if not accepted:
            raise consul.ConsulException("the agent did not accept the registration")

    async def _keep(self, r: Registration, stop: asyncio.Event) -> None:
        """Registers again whenever the agent no longer knows us, until `stop`.

        It is stopped between two calls, never within one, so that no late registration can
        arrive after the deregistration that follows.
        """
        trouble_told = False
        while not await _set_within(stop, _VERIFY_EVERY * self._rng.uniform(0.75, 1.25)):
            try:
                known = await _soon(self._consul.agent.services(filter_expr=f'ID == "{r.id}"'))
                if not known or not _matches(known.get(r.id), r):
                    await self._put(r)
                    _log.warning("registered again", extra={"instance": r.id})
                trouble_told = False
            except _TROUBLE as trouble:
                if not trouble_told:
                    _log.warning(
                        "registration not verified: %s", _reason(trouble), extra={"instance": r.id}
                    )
                trouble_told = True

    async def _stop_keeping(self, id: str) -> None:
        if kept := self._kept.pop(id, None):
            task, stop = kept
            stop.set()
            await task

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await _set_within(self._closed, seconds)


async def _soon(call: Awaitable[T]) -> T:
    async with asyncio.timeout(_ANSWER_WITHIN):
        return await call


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


def _instances(service: str, rows: list[Any]) -> tuple[Instance, ...]:
    found = []
    for row in rows:
        entry = row["Service"]
        host = entry["Address"] or row["Node"]["Address"]
        found.append(
            Instance(
                entry["ID"],
                service,
                join_address(host, int(entry["Port"])),
                MappingProxyType(dict(entry.get("Meta") or {})),
            )
        )
    return tuple(sorted(found, key=lambda i: i.id))


def _matches(entry: Any, r: Registration) -> bool:
    host, port = split_address(r.address)
    return (
        isinstance(entry, dict)
        and entry.get("Service") == r.service
        and entry.get("Address") == host
        and entry.get("Port") == port
        and (entry.get("Meta") or {}) == dict(r.meta)
    )


def _reason(trouble: BaseException) -> str:
    return f"{type(trouble).__name__}: {trouble}"[:300] if str(trouble) else type(trouble).__name__
