"""What only a registry made of names can get wrong: outages, denials, families, late lookups.

The resolver is the test's, but for the last tests, which ask real ones. What holds for every
registry is in test_registries.py.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.chassis.registry import Instance, Registration, open_registry
from services.chassis.registry.dns_registry import DnsRegistry, resolved
from tests.support import private_dns
from tests.support.waiting import BOUND_S

NOT_THERE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
NO_ADDRESS = socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
REFUSED = socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution")

Answer = Sequence[str] | BaseException


class Resolver:
    """Answers what the test sets, and counts."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: dict[str, int] = {}
        self.families: set[int] = set()
        self.under_way = self.most_under_way = 0
        self.held = asyncio.Event()
        self.held.set()
        self._news = asyncio.Event()

    async def __call__(self, host: str, family: socket.AddressFamily) -> Sequence[str]:
        self.families.add(family)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.held.wait()
        finally:
            self.under_way -= 1
        answer = self.answers[host]
        self.asked[host] = self.asked.get(host, 0) + 1
        self._news.set()
        self._news = asyncio.Event()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def asked_again(self, host: str, times: int) -> None:
        """Waits for so many further answers."""
        target = self.asked.get(host, 0) + times
        async with asyncio.timeout(BOUND_S):
            while self.asked.get(host, 0) < target:
                await self._news.wait()


class View:
    """What a watch has shown."""

    def __init__(self, registry: DnsRegistry, service: str = "svc") -> None:
        self.history: list[tuple[str, ...]] = []
        self.instances: tuple[Instance, ...] = ()
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._follow(registry, service))

    async def _follow(self, registry: DnsRegistry, service: str) -> None:
        async for instances in registry.watch(service):
            self.instances = instances
            self.history.append(tuple(i.address for i in instances))
            self._news.set()

    async def until(self, *addresses: str) -> None:
        async with asyncio.timeout(BOUND_S):
            while not self.history or self.history[-1] != addresses:
                await self._news.wait()
                self._news.clear()


@asynccontextmanager
async def watched(
    resolver: Callable[..., Any], *names: str, **options: Any
) -> AsyncIterator[tuple[DnsRegistry, View]]:
    registry = DnsRegistry({"svc": names}, refresh=0.01, resolve=resolver, **options)
    view = View(registry)
    try:
        yield registry, view
    finally:
        await registry.close()
        async with asyncio.timeout(BOUND_S):
            await view.task


async def test_each_address_of_each_name_is_an_instance_of_its_own_id():
    resolver = Resolver(a=["10.0.0.2", "10.0.0.1"], b=["fd00::1"])
    async with watched(resolver, "a:50052", "b:7") as (_, view):
        await view.until("10.0.0.1:50052", "10.0.0.2:50052", "[fd00::1]:7")
        assert [i.id for i in view.instances] == [
            "svc-10.0.0.1:50052",
            "svc-10.0.0.2:50052",
            "svc-[fd00::1]:7",
        ]
        assert {i.service for i in view.instances} == {"svc"}


async def test_what_comes_and_goes_is_shown_and_nothing_is_shown_twice():
    resolver = Resolver(a=["10.0.0.1"])
    async with watched(resolver, "a:1") as (_, view):
        await view.until("10.0.0.1:1")
        resolver.answers["a"] = ["10.0.0.2", "10.0.0.1"]
        await view.until("10.0.0.1:1", "10.0.0.2:1")
        resolver.answers["a"] = ["10.0.0.2"]
        await view.until("10.0.0.2:1")
        resolver.answers["a"] = ["10.0.0.2"]
        await resolver.asked_again("a", 5)
    assert len(view.history) == 3


async def test_an_address_of_two_names_is_one_instance():
    async with watched(Resolver(a=["10.0.0.1"], b=["10.0.0.1"]), "a:1", "b:1") as (_, view):
        await view.until("10.0.0.1:1")


@pytest.mark.parametrize("outage", [AGAIN, REFUSED, OSError("no network"), UnicodeError("idna")])
async def test_an_outage_is_never_an_empty_set(outage: Exception):
    resolver = Resolver(a=["10.0.0.1"], b=["10.0.0.2"])
    async with watched(resolver, "a:1", "b:1") as (_, view):
        await view.until("10.0.0.1:1", "10.0.0.2:1")
        resolver.answers["a"] = outage
        await resolver.asked_again("a", 20)
        # The other name is followed all the while.
        resolver.answers["b"] = ["10.0.0.3"]
        await view.until("10.0.0.1:1", "10.0.0.3:1")
        resolver.answers["a"] = ["10.0.0.1", "10.0.0.4"]
        await view.until("10.0.0.1:1", "10.0.0.3:1", "10.0.0.4:1")


async def test_an_outage_at_the_start_shows_nothing_until_a_name_is_resolved():
    resolver = Resolver(a=AGAIN)
    async with watched(resolver, "a:1") as (_, view):
        await resolver.asked_again("a", 5)
        assert view.history == []
        resolver.answers["a"] = ["10.0.0.1"]
        await view.until("10.0.0.1:1")
    assert view.history == [("10.0.0.1:1",)]


@pytest.mark.parametrize("denial", [NOT_THERE, NO_ADDRESS])
async def test_a_denial_is_believed_when_it_is_repeated(denial: Exception):
    """A headless Service without a pod that is ready has no address, or no name."""
    resolver = Resolver(a=["10.0.0.1"])
    async with watched(resolver, "a:1") as (_, view):
        await view.until("10.0.0.1:1")
        resolver.answers["a"] = denial
        await view.until()
        resolver.answers["a"] = ["10.0.0.2"]
        await view.until("10.0.0.2:1")
    assert view.history == [("10.0.0.1:1",), (), ("10.0.0.2:1",)]


async def test_a_single_denial_is_not_believed():
    answers: list[Answer] = [["10.0.0.1"], *([NOT_THERE, ["10.0.0.1"]] * 10)]
    asked = asyncio.Event()

    async def resolver(host: str, family: socket.AddressFamily) -> Sequence[str]:
        if not answers:
            asked.set()
            return ["10.0.0.1"]
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async with watched(resolver, "a:1") as (_, view):
        async with asyncio.timeout(BOUND_S):
            await asked.wait()
    assert view.history == [("10.0.0.1:1",)]


async def test_a_name_that_never_was_there_is_nobody_at_once():
    async with watched(Resolver(a=NOT_THERE), "a:1") as (_, view):
        await view.until()


async def test_denials_after_an_outage_are_doubted_for_the_grace():
    resolver = Resolver(a=["10.0.0.1"])
    async with watched(resolver, "a:1", grace=600.0) as (_, view):
        await view.until("10.0.0.1:1")
        resolver.answers["a"] = AGAIN
        await resolver.asked_again("a", 2)
        resolver.answers["a"] = NOT_THERE
        await resolver.asked_again("a", 10)
        assert view.history == [("10.0.0.1:1",)]


async def test_the_last_known_set_is_given_up_when_it_is_too_old():
    resolver = Resolver(a=["10.0.0.1"])
    async with watched(resolver, "a:1", stale_for=0.2) as (_, view):
        await view.until("10.0.0.1:1")
        resolver.answers["a"] = AGAIN
        await view.until()


async def test_a_lookup_that_hangs_is_an_outage_of_which_there_is_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("services.chassis.registry.dns_registry._ANSWER_WITHIN", 0.02)
    resolver = Resolver(a=["10.0.0.1"])
    async with watched(resolver, "a:1", stale_for=0.5) as (_, view):
        await view.until("10.0.0.1:1")
        resolver.held.clear()
        resolver.answers["a"] = ["10.0.0.2"]
        await view.until()  # given up as too old, after many times the answer's time
        assert resolver.under_way == resolver.most_under_way == 1
        resolver.held.set()
        await view.until("10.0.0.2:1")


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_names_that_are_slow_to_fail_keep_the_process_from_no_other_lookup(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither asyncio's threads nor libuv's are used up by them."""
    slow, asked = threading.Event(), threading.Semaphore(0)
    names = 40

    def resolver(*_: Any, **__: Any) -> Any:
        asked.release()
        slow.wait()
        raise AGAIN

    async def scene() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        listed = ",".join(f"slow-{n}:1" for n in range(names))
        registry = open_registry(f"dns:svc={listed}")
        assert isinstance(registry, DnsRegistry)
        view = View(registry)
        try:
            async with asyncio.timeout(BOUND_S):
                for _ in range(names):
                    while not asked.acquire(blocking=False):
                        await asyncio.sleep(0.01)
                await asyncio.to_thread(len, "")
        finally:
            slow.set()
            await registry.close()
            await view.task

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())


async def test_closing_ends_a_watch_whose_lookup_hangs():
    resolver = Resolver(a=["10.0.0.1"])
    resolver.held.clear()
    async with watched(resolver, "a:1") as (registry, view):
        await asyncio.sleep(0)
        await registry.close()
        async with asyncio.timeout(BOUND_S):
            await view.task
    assert resolver.under_way == 0


async def test_registering_changes_nothing():
    async with watched(Resolver(a=["10.0.0.1"]), "a:1") as (registry, view):
        await registry.register(Registration("svc", "me", "10.0.0.9:1"))
        await view.until("10.0.0.1:1")
        await registry.deregister("me")


# The machine's own resolver


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_machine_resolves_localhost_by_family(loop: Callable[[], asyncio.AbstractEventLoop]):
    with asyncio.Runner(loop_factory=loop) as runner:
        assert list(runner.run(resolved("localhost", socket.AF_INET))) == ["127.0.0.1"]
        found = runner.run(resolved("localhost", socket.AF_UNSPEC))
        assert set(found) <= {"127.0.0.1", "::1"}
        assert list(runner.run(resolved("10.1.2.3", socket.AF_UNSPEC))) == ["10.1.2.3"]
        with pytest.raises(socket.gaierror):
            runner.run(resolved("no-such-host.invalid", socket.AF_UNSPEC))


async def test_the_whole_of_it_with_the_machine_s_resolver():
    registry = open_registry("dns:svc=localhost:50052,localhost:7;other=127.0.0.1:9?family=ipv4")
    try:
        shown = [i.address for i in await anext(registry.watch("svc"))]
        assert shown == ["127.0.0.1:50052", "127.0.0.1:7"]
        assert [i.address for i in await anext(registry.watch("other"))] == ["127.0.0.1:9"]
    finally:
        await registry.close()


@pytest.mark.cluster
def test_a_real_name_server_that_changes_and_fails(tmp_path: Path):
    """In namespaces of its own, where port 53 is free."""
    if why := private_dns.missing():
        pytest.skip(why)
    played = subprocess.run(
        private_dns.command(tmp_path),
        cwd=private_dns.ROOT,
        capture_output=True,
        text=True,
        timeout=4 * BOUND_S,
    )
    assert played.returncode == 0, played.stderr[-3000:]
    assert played.stdout.strip() == "played"
