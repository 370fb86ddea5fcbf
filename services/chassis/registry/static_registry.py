"""Registries without a server: a fixed list, and a catalogue in memory shared within a process.

Neither checks anyone's health: what is listed or registered counts as healthy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from weakref import WeakValueDictionary

from services.chassis.registry import service_lists
from services.chassis.registry.freshness import Freshness
from services.chassis.registry.instances import Instance, Registration


def parse(text: str) -> dict[str, tuple[Instance, ...]]:
    """The instances of `service=host:port,host:port;service2=…`; ValueError if it is not that."""
    return {
        service: tuple(
            sorted(
                (Instance(f"{service}-{at}", service, at) for at in addresses),
                key=lambda one: one.id,
            )
        )
        for service, addresses in service_lists.parse(text, "static").items()
    }


class StaticRegistry:
    """Always answers with the same list. Registering changes nothing: nobody else could see it."""

    def __init__(
        self,
        instances: Mapping[str, tuple[Instance, ...]],
        freshness: Freshness | None = None,
    ) -> None:
        self._instances = instances
        self._freshness = freshness or Freshness()
        self._closed = asyncio.Event()

    async def register(self, r: Registration) -> None:
        pass

    async def deregister(self, id: str) -> None:
        pass

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        self._freshness.stands(service)
        if not self._closed.is_set():
            yield self._instances.get(service, ())
        await self._closed.wait()

    async def close(self) -> None:
        self._closed.set()


class Catalogue:
    """What the memory registries of one process share."""

    def __init__(self) -> None:
        self._entries: dict[str, Instance] = {}
        self._changed = asyncio.Event()

    def put(self, instance: Instance) -> None:
        self._entries[instance.id] = instance
        self._announce()

    def remove(self, id: str) -> None:
        if self._entries.pop(id, None) is not None:
            self._announce()

    def of(self, service: str) -> tuple[Instance, ...]:
        found = (i for i in self._entries.values() if i.service == service)
        return tuple(sorted(found, key=lambda one: one.id))

    async def change(self) -> None:
        await self._changed.wait()

    def wake(self) -> None:
        """Makes every watcher look again, also when nothing changed."""
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


# Weak: a catalogue lives as long as a registry uses it, so tests share nothing by accident.
_catalogues: WeakValueDictionary[str, Catalogue] = WeakValueDictionary()


def catalogue(name: str) -> Catalogue:
    """The catalogue of that name in this process, made when first asked for."""
    found = _catalogues.get(name)
    if found is None:
        found = _catalogues[name] = Catalogue()
    return found


class MemoryRegistry:
    """One process's view of a shared catalogue; closing it withdraws only its own registrations."""

    def __init__(self, shared: Catalogue | None = None, freshness: Freshness | None = None) -> None:
        self._freshness = freshness or Freshness()
        self._shared = shared if shared is not None else Catalogue()
        self._own: set[str] = set()
        self._closed = False

    async def register(self, r: Registration) -> None:
        self._own.add(r.id)
        self._shared.put(
            Instance(r.id, r.service, r.address, MappingProxyType(dict(r.meta)), r.weight)
        )

    async def deregister(self, id: str) -> None:
        self._own.discard(id)
        self._shared.remove(id)

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        self._freshness.stands(service)
        shown: tuple[Instance, ...] | None = None
        while not self._closed:
            present = self._shared.of(service)
            if present != shown:
                shown = present
                yield present
            else:
                await self._shared.change()

    async def close(self) -> None:
        self._closed = True
        for id in self._own:
            self._shared.remove(id)
        self._own.clear()
        self._shared.wake()
