"""One suite over every store of keys and values, and what only one with a server can get wrong."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from services.chassis.registry import (
    Entry,
    KeyValues,
    KeyValuesUnavailable,
    consul_client,
    open_key_values,
)
from tests.support.consul import ConsulAgent, running_consul
from tests.support.waiting import BOUND_S

KEY = "anabranch/router/policy"


class View:
    """Follows a key in the background and lets a test wait for what it shows."""

    def __init__(self, store: KeyValues, key: str = KEY) -> None:
        self.history: list[bytes | None] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(store, key))

    async def _follow(self, store: KeyValues, key: str) -> None:
        async for entry in store.watch(key):
            self.history.append(entry.value)
            self._news.set()

    async def until(self, shows: Callable[[bytes | None], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not self.history or not shows(self.history[-1]):
                await self._news.wait()
                self._news.clear()

    async def until_is(self, value: bytes | None) -> None:
        await self.until(lambda shown: shown == value)


class World:
    """A store of some kind, as several processes would open it."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self._stack = url, stack

    def open(self) -> KeyValues:
        store = open_key_values(self.url)
        self._stack.push_async_callback(store.close)
        return store

    def view(self, key: str = KEY) -> View:
        view = View(self.open(), key)
        self._stack.callback(view.task.cancel)
        return view


async def write(store: KeyValues, value: bytes, key: str = KEY) -> Entry:
    assert await store.put(key, value, (await store.get(key)).index)
    return await store.get(key)


@pytest.fixture(params=["memory", pytest.param("consul", marks=pytest.mark.cluster)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "consul":
            url = (await stack.enter_async_context(running_consul())).url
        else:
            url = f"memory:{uuid.uuid4()}"
        yield World(url, stack)


async def test_a_key_without_a_value_is_empty_at_once(world: World):
    assert await world.open().get(KEY) == Entry(None, 0)
    await world.view().until_is(None)


@pytest.mark.parametrize("value", [b"", b"a", "zwölf €\n".encode(), b"x" * 262_144])
async def test_a_value_is_read_as_it_was_written(world: World, value: bytes):
    store, view = world.open(), world.view()
    entry = await write(store, value)
    assert entry.value == value
    assert entry.index > 0
    await view.until_is(value)


async def test_a_value_that_changed_meanwhile_is_not_overwritten(world: World):
    store, other = world.open(), world.open()
    assert await store.put(KEY, b"1", 0)
    assert not await other.put(KEY, b"2", 0)
    first = await store.get(KEY)
    assert await other.put(KEY, b"3", first.index)
    assert not await store.put(KEY, b"4", first.index)
    assert (await store.get(KEY)).value == b"3"


async def test_every_watcher_sees_every_last_value(world: World):
    store, views = world.open(), [world.view(), world.view()]
    for view in views:
        await view.until_is(None)
    for value in (b"1", b"2", b"3"):
        await write(store, value)
        for view in views:
            await view.until_is(value)


async def test_other_keys_are_no_news(world: World):
    store, view = world.open(), world.view()
    await write(store, b"1")
    await view.until_is(b"1")
    await write(store, b"2", KEY + "-other")
    await write(store, b"3")
    await view.until_is(b"3")
    assert [value for value in view.history if value is not None] == [b"1", b"3"]


async def test_closing_ends_the_watches(world: World):
    store = world.open()
    view = View(store)
    await view.until_is(None)
    await store.close()
    async with asyncio.timeout(BOUND_S):
        await view.task


@pytest.fixture
async def consul() -> AsyncIterator[ConsulAgent]:
    async with running_consul() as agent:
        yield agent


@pytest.mark.cluster
async def test_consul_down_keeps_the_last_value_and_its_memory_lost_too(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        store, view = world.open(), world.view()
        await write(store, b"1")
        await view.until_is(b"1")
        await consul.stop()
        with pytest.raises(KeyValuesUnavailable):
            await store.get(KEY)
        with pytest.raises(KeyValuesUnavailable):
            await store.put(KEY, b"2", 1)
        # It comes back without the value: that is no news, but what is written then is.
        await consul.start()
        await world.view().until_is(None)
        await write(store, b"2", KEY + "-other")
        await write(store, b"3")
        await view.until_is(b"3")
        assert [value for value in view.history if value is not None] == [b"1", b"3"]
        assert None not in view.history[1:]


@pytest.mark.cluster
async def test_a_value_that_somebody_removes_is_gone(consul: ConsulAgent):
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        store, view = world.open(), world.view()
        await write(store, b"1")
        await view.until_is(b"1")
        await store._consul.kv.delete(KEY)  # type: ignore[attr-defined]
        await view.until_is(None)


@pytest.mark.cluster
async def test_a_store_that_is_down_at_the_start_is_followed_when_it_comes(consul: ConsulAgent):
    await consul.stop()
    async with AsyncExitStack() as stack:
        world = World(consul.url, stack)
        view = world.view()
        await consul.start()
        await view.until_is(None)
        await write(world.open(), b"1")
        await view.until_is(b"1")


class FaultyConsul:
    """An HTTP server in Consul's place that answers what a test tells it to."""

    def __init__(self) -> None:
        self.status, self.index = 200, 10
        self.body: object = [{"Value": _encoded(b"1"), "ModifyIndex": 10}]
        self.asked_with: list[str | None] = []
        self.moved = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        asked = request.query.get("index")
        self.asked_with.append(asked)
        if self.status in (200, 404) and asked is not None and int(asked) == self.index:
            self.moved.clear()
            try:
                wait = float(request.query["wait"].removesuffix("ms")) / 1000
                await asyncio.wait_for(self.moved.wait(), wait)
            except TimeoutError:
                pass
        headers = {"X-Consul-Index": str(self.index)}
        if self.status != 200:
            return web.Response(status=self.status, text="no", headers=headers)
        return web.json_response(self.body, headers=headers)

    def set(
        self, value: bytes | None = None, *, status: int = 200, index: int | None = None
    ) -> None:
        self.index = self.index + 1 if index is None else index
        self.status = status
        if value is not None:
            self.body = [{"Value": _encoded(value), "ModifyIndex": self.index}]
        self.moved.set()

    async def until_asked(self, times: int) -> None:
        target = len(self.asked_with) + times
        async with asyncio.timeout(BOUND_S):
            while len(self.asked_with) < target:
                await asyncio.sleep(0.02)


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[FaultyConsul, View]]:
    fake = FaultyConsul()
    app = web.Application()
    app.router.add_get("/v1/kv/" + KEY, fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    store = open_key_values(f"consul://127.0.0.1:{runner.addresses[0][1]}")
    view = View(store)
    try:
        await view.until_is(b"1")
        yield fake, view
    finally:
        await store.close()
        view.task.cancel()
        await runner.cleanup()


@pytest.mark.parametrize("status", [500, 503, 403, 400, 429])
async def test_an_error_is_never_a_missing_value(faulty: tuple[FaultyConsul, View], status: int):
    fake, view = faulty
    fake.set(status=status)
    await fake.until_asked(2)
    fake.set(b"2")
    await view.until_is(b"2")
    assert view.history == [b"1", b"2"]


@pytest.mark.slow
@pytest.mark.parametrize("body", ["null", {}, [{}], [{"Value": 5, "ModifyIndex": 1}], [5], "text"])
async def test_nonsense_is_never_a_value(faulty: tuple[FaultyConsul, View], body: object):
    fake, view = faulty
    fake.body = body
    fake.set()
    await fake.until_asked(2)
    fake.set(b"2")
    await view.until_is(b"2")
    assert view.history == [b"1", b"2"]


async def test_an_index_that_goes_backwards_begins_anew_and_loses_nothing(
    faulty: tuple[FaultyConsul, View],
):
    fake, view = faulty
    fake.set(status=404, index=3)
    await fake.until_asked(2)
    assert fake.asked_with[1:3] == ["10", None]
    fake.set(b"2", index=4)
    await view.until_is(b"2")
    assert view.history == [b"1", b"2"]


async def test_a_missing_value_of_a_store_in_good_health_is_believed(
    faulty: tuple[FaultyConsul, View],
):
    fake, view = faulty
    fake.set(status=404)
    await view.until_is(None)


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
