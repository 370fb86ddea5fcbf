"""One suite over every registry, and what only a registry with a server can get wrong."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.chassis.registry import (
    Freshness,
    Instance,
    Registration,
    Registry,
    consul_client,
    open_key_values,
    open_registry,
)
from services.chassis.setting_values import Secret
from tests.support.consul import ConsulAgent, running_consul

WITHIN = 60.0  # s, a bound for waiting that no healthy run comes near


class Process:
    """Something that a registry can find healthy: a gRPC server with the health service."""

    def __init__(self, server: grpc.aio.Server, servicer: health.aio.HealthServicer, port: int):
        self.server, self.servicer = server, servicer
        self.address = f"127.0.0.1:{port}"

    async def healthy(self, yes: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self.servicer.set("", status.SERVING if yes else status.NOT_SERVING)


@asynccontextmanager
async def process() -> AsyncIterator[Process]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Process(server, servicer, port)
    finally:
        await server.stop(None)


class View:
    """Follows a watch in the background and lets a test wait for what it shows."""

    def __init__(self, registry: Registry, service: str) -> None:
        self.history: list[tuple[Instance, ...]] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(registry, service))

    async def _follow(self, registry: Registry, service: str) -> None:
        async for instances in registry.watch(service):
            self.history.append(instances)
            self._news.set()

    async def until(self, shows: Callable[[tuple[Instance, ...]], bool]) -> tuple[Instance, ...]:
        async with asyncio.timeout(WITHIN):
            while not self.history or not shows(self.history[-1]):
                await self._news.wait()
                self._news.clear()
        return self.history[-1]

    async def until_ids(self, *ids: str) -> tuple[Instance, ...]:
        return await self.until(lambda shown: tuple(i.id for i in shown) == ids)


class World:
    """A registry of some kind, as several processes would open it."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self._stack = url, stack

    def open(
        self,
        *,
        stale_for: float = 3600.0,
        grace: float = 10.0,
        freshness: Freshness | None = None,
    ) -> Registry:
        registry = open_registry(self.url, stale_for=stale_for, grace=grace, freshness=freshness)
        self._stack.push_async_callback(registry.close)
        return registry

    def view(self, service: str, registry: Registry | None = None) -> View:
        view = View(registry or self.open(), service)
        self._stack.callback(view.task.cancel)
        return view

    async def process(self) -> Process:
        return await self._stack.enter_async_context(process())


@pytest.fixture
async def consul() -> AsyncIterator[ConsulAgent]:
    async with running_consul() as agent:
        yield agent


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "consul":
            url = (await stack.enter_async_context(running_consul())).url
        elif request.param == "memory":
            url = f"memory:{uuid.uuid4()}"
        elif request.param == "dns":
            url = "dns:svc=localhost:1;other=localhost:3"
        else:
            url = "static:svc=127.0.0.1:2,127.0.0.1:1;other=127.0.0.1:3"
        yield World(url, stack)


CONSUL = pytest.param("consul", marks=pytest.mark.cluster)
every_kind = pytest.mark.parametrize("world", ["static", "memory", "dns", CONSUL], indirect=True)
kinds_that_change = pytest.mark.parametrize("world", ["memory", CONSUL], indirect=True)


@every_kind
async def test_a_service_nobody_offers_is_an_empty_set_at_once(world: World):
    assert await world.view("nobody").until_ids() == ()


@every_kind
async def test_deregistering_what_is_unknown_is_no_error(world: World):
    await world.open().deregister("unknown-1")


@every_kind
async def test_closing_ends_the_watches(world: World):
    registry = world.open()
    view = world.view("nobody", registry)
    await view.until_ids()
    await registry.close()
    async with asyncio.timeout(WITHIN):
        await view.task


@every_kind
async def test_a_watch_can_be_cancelled(world: World):
    view = world.view("nobody")
    await view.until_ids()
    view.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await view.task


@kinds_that_change
async def test_what_registers_is_seen_with_its_address_and_meta_in_order_of_ids(world: World):
    view = world.view("svc")
    await view.until_ids()
    first, second = await world.process(), await world.process()
    registry = world.open()
    await registry.register(Registration("svc", "b", first.address, {"zone": "z"}))
    await registry.register(Registration("svc", "a", second.address))
    a, b = await view.until_ids("a", "b")
    assert (a.address, dict(a.meta)) == (second.address, {})
    assert (b.address, dict(b.meta), b.service) == (first.address, {"zone": "z"}, "svc")


@kinds_that_change
async def test_what_deregisters_goes(world: World):
    view, registry = world.view("svc"), world.open()
    await registry.register(Registration("svc", "a", (await world.process()).address))
    await view.until_ids("a")
    await registry.deregister("a")
    await view.until_ids()


@kinds_that_change
async def test_registering_again_replaces(world: World):
    view, registry = world.view("svc"), world.open()
    where = (await world.process()).address
    await registry.register(Registration("svc", "a", where, {"v": "1"}))
    await view.until_ids("a")
    await registry.register(Registration("svc", "a", where, {"v": "2"}))
    await view.until(lambda shown: len(shown) == 1 and shown[0].meta["v"] == "2")


@kinds_that_change
async def test_a_weight_is_seen_and_so_is_another_one(world: World):
    view, registry = world.view("svc"), world.open()
    where = (await world.process()).address
    await registry.register(Registration("svc", "a", where, weight=5))
    await view.until(lambda shown: [i.weight for i in shown] == [5])
    await registry.register(Registration("svc", "a", where))
    await view.until(lambda shown: [i.weight for i in shown] == [1])


@kinds_that_change
async def test_every_watcher_sees_a_change(world: World):
    registry = world.open()
    views = [world.view("svc", registry), world.view("svc", registry), world.view("svc")]
    await registry.register(Registration("svc", "a", (await world.process()).address))
    for view in views:
        await view.until_ids("a")


async def test_a_static_list_is_shown_whole_and_ordered():
    registry = open_registry("static:svc=127.0.0.1:2,127.0.0.1:1,other=h:3;third=[::1]:4")
    shown = {s: await anext(registry.watch(s)) for s in ("svc", "other", "third")}
    addresses = {s: [i.address for i in found] for s, found in shown.items()}
    assert addresses == {
        "svc": ["127.0.0.1:1", "127.0.0.1:2"],
        "other": ["h:3"],
        "third": ["[::1]:4"],
    }


@pytest.mark.parametrize(
    "url",
    [
        "static:127.0.0.1:1",
        "static:svc=127.0.0.1",
        "static:svc=h:1,h:1",
        "static:svc=h:0",
        "static:svc=h:1;h:2",
        "zookeeper:x",
        "consul://h:8500?dcc=x",
        "consul://h:8500?tls=maybe",
        "consul://h:8500?cert=x",
        "consul:h:8500",
        "dns:",
        "dns:h:1",
        "dns:svc=h",
        "dns:svc=h:1,h:1",
        "dns:svc=h:1?refresh=never",
        "dns:svc=h:1?refresh=0",
        "dns:svc=h:1?family=ipv5",
        "dns:svc=h:1?ttl=5s",
        "consul://h:8500/path",
    ],
)
async def test_a_url_that_names_no_registry_is_refused(url: str):
    with pytest.raises(ValueError, match=r"registry|Consul|host:port|port between"):
        open_registry(url)


@pytest.mark.cluster
async def test_what_turns_unhealthy_goes_and_comes_back(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view, server = world.view("svc"), await world.process()
        await world.open().register(Registration("svc", "a", server.address))
        await view.until_ids("a")
        await server.healthy(False)
        await view.until_ids()
        await server.healthy(True)
        await view.until_ids("a")


@pytest.mark.cluster
async def test_an_agent_that_restarts_without_memory_never_shows_an_empty_set(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        # Within the grace whoever lives registers again; on a busy machine that takes longer.
        view = world.view("svc", world.open(grace=600.0))
        server = await world.process()
        await world.open().register(Registration("svc", "a", server.address, {"zone": "z"}))
        await view.until_ids("a")
        before = len(view.history)
        await consul.stop()
        await consul.start()
        # A watcher that knows nothing of before shows when the registration is back.
        await world.view("svc").until_ids("a")
        later = await world.process()
        await world.open().register(Registration("svc", "b", later.address))
        await view.until_ids("a", "b")
        assert all(shown for shown in view.history[before:])


@pytest.mark.cluster
async def test_what_died_during_the_outage_goes_after_the_grace(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view = world.view("svc", world.open(grace=1.0))
        owner = world.open()
        await owner.register(Registration("svc", "a", (await world.process()).address))
        await view.until_ids("a")
        await consul.stop()
        await owner.deregister("a")
        await consul.start()
        await view.until_ids()


@pytest.mark.cluster
async def test_the_last_known_set_is_given_up_when_it_is_too_old(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view = world.view("svc", world.open(stale_for=1.0))
        await world.open().register(Registration("svc", "a", (await world.process()).address))
        await view.until_ids("a")
        await consul.stop()
        await view.until_ids()


@pytest.mark.cluster
async def test_a_registry_that_is_down_at_the_start_is_joined_when_it_comes(consul: ConsulAgent):
    await consul.stop()
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view, server = world.view("svc"), await world.process()
        await world.open().register(Registration("svc", "a", server.address))
        assert view.history == []
        await consul.start()
        await view.until_ids("a")


@pytest.mark.cluster
async def test_the_age_of_what_is_known_grows_while_the_agent_is_away(consul: ConsulAgent):
    now = 100.0
    freshness = Freshness(lambda: now)
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view = world.view("svc", world.open(freshness=freshness))
        await view.until_ids()
        assert freshness.up() == {"svc": True}
        await consul.stop()
        async with asyncio.timeout(WITHIN):
            while freshness.up()["svc"]:
                await asyncio.sleep(0.01)
        now += 50.0
        assert freshness.ages() == {"svc": 50.0}
        await consul.start()
        async with asyncio.timeout(WITHIN):
            while not freshness.up()["svc"]:
                await asyncio.sleep(0.01)
        assert freshness.ages() == {"svc": 0.0}


async def test_what_needs_no_asking_is_always_fresh():
    now = 100.0
    freshness = Freshness(lambda: now)
    async with AsyncExitStack() as stack:
        for url in ("static:svc=127.0.0.1:1", f"memory:{uuid.uuid4()}"):
            world = World(url, stack)
            await world.view("svc", world.open(freshness=freshness)).until(lambda _: True)
            now += 1000.0
            assert (freshness.up(), freshness.ages()) == ({"svc": True}, {"svc": 0.0})


async def test_a_frozen_agent_holds_up_neither_registering_nor_closing(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        stack.callback(consul.thaw)
        world = World(consul.url, stack)
        registry = world.open()
        view = world.view("svc", registry)
        await view.until_ids()
        consul.freeze()
        async with asyncio.timeout(WITHIN):
            await registry.register(Registration("svc", "a", "127.0.0.1:1"))
            await registry.deregister("a")
            await registry.close()
            await view.task


class FaultyConsul:
    """An HTTP server in Consul's place that answers what a test tells it to."""

    def __init__(self) -> None:
        self.status, self.index = 200, 10
        self.rows: object = []
        self.asked_with: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.moved = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        asked = request.query.get("index")
        self.asked_with.append(asked)
        self.headers.append(dict(request.headers))
        if self.status == 200 and asked is not None and int(asked) == self.index:
            self.moved.clear()
            try:
                wait = float(request.query["wait"].removesuffix("ms")) / 1000
                await asyncio.wait_for(self.moved.wait(), wait)
            except TimeoutError:
                pass
        headers = {"X-Consul-Index": str(self.index)}
        if self.status != 200:
            return web.Response(status=self.status, text="No cluster leader", headers=headers)
        return web.json_response(self.rows, headers=headers)

    async def value(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        return web.json_response([], status=404, headers={"X-Consul-Index": "1"})

    def set(self, *, rows: object | None = None, status: int = 200, index: int | None = None):
        self.rows = self.rows if rows is None else rows
        self.status = status
        self.index = self.index + 1 if index is None else index
        self.moved.set()

    async def until_asked(self, times: int) -> None:
        target = len(self.asked_with) + times
        async with asyncio.timeout(WITHIN):
            while len(self.asked_with) < target:
                await asyncio.sleep(0.02)


def row(id: str, port: int = 1) -> dict[str, object]:
    service = {"ID": id, "Address": "", "Port": port, "Meta": None}
    return {"Node": {"Address": "10.0.0.1"}, "Service": service}


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[FaultyConsul, View]]:
    fake = FaultyConsul()
    fake.rows = [row("a"), row("b", 2)]
    app = web.Application()
    app.router.add_get("/v1/health/service/svc", fake.answer)
    app.router.add_get("/v1/kv/policy", fake.value)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    fake.url = f"consul://127.0.0.1:{port}"
    registry = open_registry(f"{fake.url}?ns=llm&partition=eu", token=Secret("acl"), grace=1.0)
    view = View(registry, "svc")
    try:
        await view.until_ids("a", "b")
        yield fake, view
    finally:
        await registry.close()
        view.task.cancel()
        await runner.cleanup()


@pytest.mark.parametrize("status", [500, 503, 403, 404, 429])
async def test_an_error_is_never_an_empty_set(faulty: tuple[FaultyConsul, View], status: int):
    fake, view = faulty
    fake.set(rows=[], status=status)
    await fake.until_asked(2)
    fake.set(rows=[row("a"), row("b", 2), row("c", 3)])
    await view.until_ids("a", "b", "c")
    assert all(view.history)


def _where(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("X-Consul-")}


async def test_namespace_partition_and_token_go_with_every_question(
    faulty: tuple[FaultyConsul, View],
):
    fake, _ = faulty
    said = {"X-Consul-Token": "acl", "X-Consul-Namespace": "llm", "X-Consul-Partition": "eu"}
    assert _where(fake.headers[0]) == said
    for url, expected in ((f"{fake.url}?ns=llm&partition=eu", said), (fake.url, {})):
        values = open_key_values(url, token=Secret("acl") if expected else None)
        await values.get("policy")
        await values.close()
        assert _where(fake.headers[-1]) == expected


@pytest.mark.cluster
async def test_a_namespace_that_consul_does_not_have_is_no_silent_default(
    consul: ConsulAgent, caplog: pytest.LogCaptureFixture
):
    registry = open_registry(f"{consul.url}?ns=llm")
    await registry.register(Registration("svc", "a", "127.0.0.1:1"))
    await registry.close()
    assert "Namespaces are a Consul Enterprise feature" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["null", {}, [{}], [{"Service": None}], [5]])
async def test_nonsense_is_never_an_empty_set(faulty: tuple[FaultyConsul, View], rows: object):
    fake, view = faulty
    fake.set(rows=rows)
    await fake.until_asked(2)
    fake.set(rows=[row("a")])
    await view.until_ids("a")
    assert all(view.history)


async def test_an_index_that_goes_backwards_begins_anew_and_grants_the_grace(
    faulty: tuple[FaultyConsul, View],
):
    fake, view = faulty
    fake.set(rows=[], index=3)
    await view.until_ids()  # after the grace, not before: the next line shows that it was asked
    assert fake.asked_with[1:3] == ["10", None]


async def test_an_empty_answer_of_a_registry_in_good_health_is_believed(
    faulty: tuple[FaultyConsul, View],
):
    fake, view = faulty
    fake.set(rows=[])
    await view.until_ids()


async def test_an_index_that_races_ahead_does_not_turn_into_a_busy_loop(
    faulty: tuple[FaultyConsul, View],
):
    fake, _ = faulty
    loop = asyncio.get_running_loop()
    asked, began = len(fake.asked_with), loop.time()
    for _ in range(50):
        fake.set()
        await asyncio.sleep(0.01)
    # However long that took: between two queries there is a pause each time.
    most = 2 + (loop.time() - began) / consul_client.FLOOR
    assert len(fake.asked_with) - asked <= most
