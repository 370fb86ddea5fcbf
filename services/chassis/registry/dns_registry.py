"""The registry that DNS is: names which are resolved again and again, each address an instance.

Made for headless Services of Kubernetes, whose names hold the addresses of the pods that are ready.
It registers nobody and checks nobody: whoever keeps the names does. Which set is in force while
names cannot be resolved is decided in last_known.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from services.chassis.own_thread import in_own_thread
from services.chassis.registry import service_lists
from services.chassis.registry.freshness import Freshness
from services.chassis.registry.instances import (
    Instance,
    Registration,
    join_address,
    split_address,
)
from services.chassis.registry.last_known import LastKnown
from services.chassis.setting_values import parse as parse_value

_log = logging.getLogger(__name__)

Resolve = Callable[[str, socket.AddressFamily], Awaitable[Sequence[str]]]
"""The IP addresses of a host. Raises OSError, of which gaierror says more."""

REFRESH = 2.0
_ANSWER_WITHIN = 3.0
_FAMILIES = {"any": socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# "There is no such name" and "it has no address". All else, such as EAI_AGAIN, is an outage.
_NOBODY = (socket.EAI_NONAME, socket.EAI_NODATA)
_BELIEVED_AFTER = 2
"""Answers in a row that a name which had addresses has none."""


def from_url(
    url: str, *, stale_for: float, grace: float, freshness: Freshness | None = None
) -> DnsRegistry:
    """Opens `dns:service=host:port,…;service2=…?refresh=2s&family=any`; ValueError if it is not."""
    listed, _, options = url.removeprefix("dns:").partition("?")
    query = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := set(query) - {"refresh", "family"}:
        raise ValueError(f"the dns registry has unknown parameters: {', '.join(sorted(unknown))}")
    try:
        refresh: float = parse_value(query.get("refresh", str(REFRESH)), float)
    except ValueError as wrong:
        raise ValueError(f"the dns registry's refresh {wrong}") from None
    if not 0.1 <= refresh <= 3600:
        raise ValueError("the dns registry's refresh is from 100ms to 1h")
    family = _FAMILIES.get(query.get("family", "any"))
    if family is None:
        raise ValueError(f"the dns registry's family is one of {', '.join(_FAMILIES)}")
    names = service_lists.parse(listed, "dns")
    if not names:
        raise ValueError("a dns registry is dns:service=host:port,host:port;service2=host:port")
    return DnsRegistry(
        names,
        refresh=refresh,
        family=family,
        stale_for=stale_for,
        grace=grace,
        freshness=freshness,
    )


async def resolved(host: str, family: socket.AddressFamily) -> Sequence[str]:
    """What the machine's own resolver says: /etc/hosts and /etc/resolv.conf count.

    In a thread of its own: the loop has a few for all lookups of the process, and names that are
    slow to fail would keep it from every other. Nobody waits for it at the process's end.
    """

    def look_up() -> Sequence[str]:
        found = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
        return sorted({str(address[0]) for *_, address in found})

    return await in_own_thread(look_up, name=f"resolve {host}")


class DnsRegistry:
    """Resolves each name of a watched service every `refresh` seconds, until closed.

    A name that has no addresses any more has said so twice before that is believed; a name that
    cannot be resolved keeps those it had, each name for itself.
    """

    def __init__(
        self,
        names: Mapping[str, tuple[str, ...]],
        *,
        refresh: float = REFRESH,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        stale_for: float = 3600.0,
        grace: float = 10.0,
        resolve: Resolve = resolved,
        rng: random.Random | None = None,
        freshness: Freshness | None = None,
    ) -> None:
        self._names = names
        self._refresh = refresh
        self._family = family
        self._stale_for = stale_for
        self._grace = grace
        self._resolve = resolve
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._freshness = freshness or Freshness()
        self._closed = asyncio.Event()

    async def register(self, r: Registration) -> None:
        pass

    async def deregister(self, id: str) -> None:
        pass

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        names = [
            _Name(
                service,
                *split_address(address),
                LastKnown(self._stale_for, self._grace),
                lambda host: self._resolve(host, self._family),
            )
            for address in self._names.get(service, ())
        ]
        self._freshness.asked(service)
        if not names:
            self._freshness.stands(service)
        shown: tuple[Instance, ...] | None = None
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            while not closed.done():
                await asyncio.gather(*(name.ask(closed) for name in names))
                if any(name.failing for name in names):
                    self._freshness.failed(service)
                elif names:
                    self._freshness.answered(service)
                found = {i.id: i for name in names for i in name.present}
                present = tuple(found[id] for id in sorted(found))
                known = not names or any(name.answered for name in names)
                if known and present != shown and not closed.done():
                    shown = present
                    yield present
                pause = self._refresh * self._rng.uniform(0.75, 1.25) if names else None
                await asyncio.wait((closed,), timeout=pause)
        finally:
            closed.cancel()
            for name in names:
                await name.close()

    async def close(self) -> None:
        self._closed.set()


class _Name:
    """One name of one service: its lookups, one at a time, and the instances it stands for."""

    def __init__(
        self,
        service: str,
        host: str,
        port: int,
        known: LastKnown,
        resolve: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        self._service = service
        self._host = host
        self._port = port
        self._known = known
        self._resolve = resolve
        self._lookup: asyncio.Future[Sequence[str]] | None = None
        self._failures = self._denials = 0
        self.present: tuple[Instance, ...] = ()
        self.answered = False

    @property
    def failing(self) -> bool:
        """Whether it could not be resolved when it was last tried."""
        return self._failures > 0

    async def ask(self, closed: asyncio.Future[Any]) -> None:
        """Resolves it once, or for as long as an answer may take; not beyond `closed`.

        A lookup that is late is waited for again next time: a resolver in trouble is not helped
        by more of them, and each holds a thread.
        """
        if self._lookup is None:
            self._lookup = asyncio.ensure_future(self._resolve(self._host))
        await asyncio.wait(
            (self._lookup, closed), timeout=_ANSWER_WITHIN, return_when=asyncio.FIRST_COMPLETED
        )
        if closed.done():
            return
        if not self._lookup.done():
            self._failed("no answer in time")
            return
        lookup, self._lookup = self._lookup, None
        try:
            addresses = lookup.result()
        except socket.gaierror as error:
            if error.errno in _NOBODY:
                self._denied()
            else:
                self._failed(error.strerror or str(error))
        except (OSError, UnicodeError) as error:
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._denials = 0
            self._answer(addresses)

    async def close(self) -> None:
        """Gives up a lookup that is under way."""
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.gather(self._lookup, return_exceptions=True)

    def _denied(self) -> None:
        self._denials += 1
        # A server that has just come up, or lost its own source, may say so of every name.
        if not self.present or self._denials >= _BELIEVED_AFTER:
            self._answer(())

    def _answer(self, addresses: Sequence[str]) -> None:
        if self._failures:
            extra = {"host": self._host, "watched": self._service}
            _log.info("a name is resolved again", extra=extra)
        self._failures = 0
        self.answered = True
        joined = (join_address(address, self._port) for address in addresses)
        fresh = tuple(Instance(f"{self._service}-{at}", self._service, at) for at in joined)
        self._take(self._known.answered(fresh, memory_lost=False, now=self._now()))

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures in (1, 10):
            _log.warning(
                "a name cannot be resolved, keeping what is known: %s",
                why,
                extra={"host": self._host, "watched": self._service, "failures": self._failures},
            )
        self._take(self._known.failed(self._now()))

    def _take(self, changed: tuple[Instance, ...] | None) -> None:
        if changed is not None:
            self.present = changed

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
