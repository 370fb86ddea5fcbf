"""The registry kept by a Consul agent: registration with a gRPC health check, and watches.

How the agent is reached is known to consul_client.py. Which set is in force after an outage is
decided in last_known.py; what to do with the instances is the caller's business.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import consul
import consul.aio

from services.chassis.registry.consul_client import (
    ANSWER_WITHIN,
    FLOOR,
    TROUBLE,
    WAIT,
    WAIT_JITTER,
    back_off,
    client_from_url,
    reason,
    set_within,
    soon,
)
from services.chassis.registry.freshness import Freshness
from services.chassis.registry.instances import (
    Instance,
    Registration,
    join_address,
    split_address,
)
from services.chassis.registry.last_known import LastKnown
from services.chassis.setting_values import Secret

_log = logging.getLogger(__name__)
_VERIFY_EVERY = 2.0  # s between checks that the agent still knows us


def from_url(
    url: str,
    *,
    token: Secret | None,
    stale_for: float,
    grace: float,
    freshness: Freshness | None = None,
) -> ConsulRegistry:
    """Opens what `client_from_url` opens; ValueError if the URL is not such a one."""
    return ConsulRegistry(
        client_from_url(url, token), stale_for=stale_for, grace=grace, freshness=freshness
    )


class ConsulRegistry:
    """Speaks to one Consul agent; owns the client and a task per registration until closed."""

    def __init__(
        self,
        client: consul.aio.Consul,
        *,
        stale_for: float = 3600.0,
        grace: float = 10.0,
        rng: random.Random | None = None,
        freshness: Freshness | None = None,
    ) -> None:
        self._consul = client
        self._freshness = freshness or Freshness()
        self._stale_for = stale_for
        self._grace = grace
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._closed = asyncio.Event()
        self._kept: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}

    async def register(self, r: Registration) -> None:
        await self._stop_keeping(r.id)
        try:
            await self._put(r)
        except TROUBLE as trouble:
            _log.warning("not registered yet: %s", reason(trouble), extra={"instance": r.id})
        stop = asyncio.Event()
        task = asyncio.create_task(self._keep(r, stop), name=f"registration {r.id}")
        self._kept[r.id] = (task, stop)

    async def deregister(self, id: str) -> None:
        await self._stop_keeping(id)
        for attempt in (1, 2):
            try:
                await soon(self._consul.agent.service.deregister(id))
                return
            except TROUBLE as trouble:
                # The agent removes us by itself a minute after our health check stops answering.
                _log.warning(
                    "deregistration failed: %s",
                    reason(trouble),
                    extra={"instance": id, "attempt": attempt},
                )

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        self._freshness.asked(service)
        known = LastKnown(self._stale_for, self._grace)
        clock = asyncio.get_running_loop().time
        index, failures = 0, 0
        while not self._closed.is_set():
            started, pause = clock(), FLOOR
            wait = WAIT + self._rng.uniform(0, WAIT_JITTER)
            left = known.seconds_of_grace(started)
            wait = wait if left is None else min(wait, left)
            try:
                answer, rows = await self._ask(service, index, max(0.05, wait))
                instances = _instances(service, rows)
            except TROUBLE as trouble:
                if self._closed.is_set():
                    return
                failures += 1
                self._freshness.failed(service)
                # An agent that restarts counts from the beginning, so the old index means nothing.
                index = 0
                pause = back_off(failures, self._rng)
                changed = known.failed(clock())
                if failures in (1, 10):
                    _log.warning(
                        "registry does not answer, keeping what is known: %s",
                        reason(trouble),
                        extra={"watched": service, "failures": failures},
                    )
            else:
                if failures:
                    _log.info("registry answers again", extra={"watched": service})
                failures = 0
                self._freshness.answered(service)
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
        async with asyncio.timeout(blocks_for + ANSWER_WITHIN):
            answer, rows = await self._consul.health.service(
                service, passing=True, index=index or None, wait=f"{int(wait * 1000)}ms"
            )
        if not isinstance(rows, list):
            raise ValueError("the answer holds no list of instances")
        return int(answer), rows

    async def _put(self, r: Registration) -> None:
        host, port = split_address(r.address)
        check: dict[str, str | bool] = {
            "CheckID": f"service:{r.id}",
            "Name": "grpc.health.v1",
            "GRPC": r.health_address or r.address,
            "GRPCUseTLS": r.health_tls,
            "Interval": "1s",
            "Timeout": "2s",
            "DeregisterCriticalServiceAfter": "1m",
        }
        if r.health_tls:
            # Certificates hold the service's name, not each process's address, and Consul below
            # 1.9 cannot be told the name. Who calls the service verifies it; health is no secret.
            check["TLSSkipVerify"] = True
        accepted = await soon(
            self._consul.agent.service.register(
                r.service,
                service_id=r.id,
                address=host,
                port=port,
                meta=dict(r.meta),
                check=check,
                weights={"Passing": r.weight, "Warning": 1},
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
        while not await set_within(stop, _VERIFY_EVERY * self._rng.uniform(0.75, 1.25)):
            try:
                known = await soon(self._consul.agent.services(filter_expr=f'ID == "{r.id}"'))
                if not known or not _matches(known.get(r.id), r):
                    await self._put(r)
                    _log.warning("registered again", extra={"instance": r.id})
                trouble_told = False
            except TROUBLE as trouble:
                if not trouble_told:
                    _log.warning(
                        "registration not verified: %s", reason(trouble), extra={"instance": r.id}
                    )
                trouble_told = True

    async def _stop_keeping(self, id: str) -> None:
        if kept := self._kept.pop(id, None):
            task, stop = kept
            stop.set()
            await task

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await set_within(self._closed, seconds)


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
                int((entry.get("Weights") or {}).get("Passing", 1)),
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
        and (entry.get("Weights") or {}).get("Passing", 1) == r.weight
    )
