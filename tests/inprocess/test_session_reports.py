"""What a session tells beside its frames: the load when it matters, and the prefix cache's news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.chassis.common_settings import CommonSettings
from services.chassis.host import Host
from services.chassis.model_handler import Outlet
from services.chassis.model_streams import StreamLimits
from services.chassis.prefix_log import PrefixLog
from tests.support.auth import bearer, until
from tests.support.inprocess import model_stub
from tests.support.local_keys import LocalKeys

NEVER = 3600.0


class Handler:
    """Keeps the outlets of requests, numbers its reports, and has a prefix cache."""

    def __init__(self, log: PrefixLog | None) -> None:
        self.outlets: list[Outlet] = []
        self.reports = 0
        self.running = 0
        self._log = log

    def open(self, request: Any, context: Any, outlet: Outlet) -> Callable[[], None]:
        self.outlets.append(outlet)
        return lambda: None

    def ready(self) -> session_pb2.SessionReady:
        return session_pb2.SessionReady(backend_id="scripted")

    def load(self) -> session_pb2.LoadReport:
        self.reports += 1
        return session_pb2.LoadReport(sequence=self.reports, running=self.running)

    def prefix_log(self) -> PrefixLog | None:
        return self._log

    async def next(self) -> Outlet:
        async def there() -> bool:
            return bool(self.outlets)

        await until(there)
        return self.outlets.pop(0)


class Plain(Handler):
    """A backend without a prefix cache, as a cloud proxy is."""

    prefix_log = None  # type: ignore[assignment]


class Caller:
    """One session, and what it has been told."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.held: set[int] = set()
        self.messages: list[session_pb2.SessionResponse] = []

    async def read(self) -> session_pb2.SessionResponse:
        async with asyncio.timeout(5):
            message: session_pb2.SessionResponse = await self.call.read()
        assert message is not grpc.aio.EOF
        self.messages.append(message)
        if message.HasField("prefix_cache"):
            events = message.prefix_cache
            assert len(events.stored) + len(events.removed) <= 4096
            self.held = set() if events.cleared else self.held
            self.held.update(events.stored)
            self.held.difference_update(events.removed)
        return message

    async def read_frame(self) -> session_pb2.SessionResponse:
        while not (message := await self.read()).frames:
            pass
        return message

    async def holds(self, *names: int) -> None:
        while self.held != set(names):
            await self.read()

    async def start(self, stream: int = 1, model: str = "m") -> None:
        request = pb.GenerateRequest(model=model, prompt="p")
        frame = session_pb2.SessionRequestFrame(stream=stream, start=request)
        await self.call.write(session_pb2.SessionRequest(frames=[frame]))


class Scene:
    def __init__(self, handler: Any, stub: Any, keys: LocalKeys) -> None:
        self.handler = handler
        self._stub = stub
        self._keys = keys

    async def session(self, *scopes: str) -> Caller:
        """An open session whose first report has come."""
        token = self._keys.token(*(scopes or ("generate", "relay")))
        caller = Caller(self._stub.Session(metadata=bearer(token)))
        await caller.read()
        while not (await caller.read()).HasField("load"):
            pass
        return caller


@asynccontextmanager
async def scene(
    log: PrefixLog | None = None, kind: type[Handler] = Handler, **limits: float
) -> AsyncIterator[Scene]:
    keys, handler = LocalKeys(), kind(log)
    settings = CommonSettings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", registry="none", drain_timeout=0.1
    )
    limits = {"load_busy_interval": NEVER, "load_idle_interval": NEVER} | limits
    async with Host.open("anabranch-engine", settings, key_source=keys) as host:
        host.add_model_service(handler, limits=StreamLimits(**limits))  # type: ignore[arg-type]
        await host.start()
        await host.serve()
        async with grpc.aio.insecure_channel(host.address) as channel:
            yield Scene(handler, model_stub(channel), keys)


def chunk(**fields: Any) -> bytes:
    raw: bytes = pb.GenerateChunk(**fields).SerializeToString()
    return raw


async def test_a_report_rides_with_a_request_s_first_token_and_with_its_end():
    async with scene() as s:
        caller = await s.session()
        await caller.start()
        outlet = await s.handler.next()
        outlet.chunk(chunk(request_id="r"), last=False, tokens=0)
        assert not (await caller.read_frame()).HasField("load")
        before = s.handler.reports
        outlet.chunk(chunk(text="a"), last=False, tokens=1)
        first = await caller.read_frame()
        assert first.frames[0].tokens == 1
        assert (first.load.sequence, first.load.starts_seen) == (before + 1, 1)
        outlet.chunk(chunk(text="b"), last=False, tokens=1)
        assert not (await caller.read_frame()).HasField("load")
        outlet.chunk(chunk(text="c", finish_reason=pb.FINISH_REASON_STOP), last=True, tokens=1)
        last = await caller.read_frame()
        assert last.frames[0].last
        assert last.load.sequence == before + 2


async def test_however_many_first_tokens_and_ends_a_message_has_one_report():
    async with scene() as s:
        caller = await s.session()
        outlets = []
        for stream in range(1, 6):
            await caller.start(stream)
            outlets.append(await s.handler.next())
        before = s.handler.reports
        for outlet in outlets:
            outlet.chunk(chunk(text="a"), last=True, tokens=1)
        message = await caller.read_frame()
        assert len(message.frames) == 5
        assert s.handler.reports == before + 1


async def test_a_relay_hears_of_the_load_that_others_bring():
    async with scene(load_busy_interval=0.01) as s:
        busy, idle = await s.session(), await s.session()
        plain = await s.session("generate")
        await busy.start()
        outlet = await s.handler.next()
        s.handler.running = 1
        for _ in range(5):
            assert (await idle.read()).HasField("load")
        # One that balances nothing was told when it came, and now with its refusal.
        await plain.start(model="")
        await plain.read_frame()
        assert len([m for m in plain.messages if m.HasField("load")]) == 2
        s.handler.running = 0
        outlet.chunk(chunk(finish_reason=pb.FINISH_REASON_STOP), last=True, tokens=0)
        while (await idle.read()).load.running:
            pass


async def test_a_new_session_is_told_what_is_held_and_then_every_one_what_changes():
    log = PrefixLog()
    log.stored(1)
    log.stored(2)
    async with scene(log, load_busy_interval=0.01) as s:
        first = await s.session()
        await first.holds(1, 2)
        log.removed(1)
        log.stored(3)
        second = await s.session()
        await asyncio.gather(first.holds(2, 3), second.holds(2, 3))
        log.clear()
        log.stored(4)
        await asyncio.gather(first.holds(4), second.holds(4))
        for caller in (first, second):
            assert caller.messages[0].ready.prefix_cache_events
            told = [m.prefix_cache for m in caller.messages if m.HasField("prefix_cache")]
            assert told[0].cleared


async def test_news_of_the_cache_rides_with_the_step_that_brought_it():
    log = PrefixLog()
    async with scene(log) as s:
        caller = await s.session()
        await caller.start()
        outlet = await s.handler.next()
        log.stored(7)
        outlet.chunk(chunk(text="a"), last=False, tokens=1)
        message = await caller.read_frame()
        assert list(message.prefix_cache.stored) == [7]
        outlet.chunk(chunk(text="b"), last=False, tokens=1)
        assert not (await caller.read_frame()).HasField("prefix_cache")


async def test_many_names_come_in_several_messages():
    log = PrefixLog()
    for name in range(10_000):
        log.stored(name)
    async with scene(log) as s:
        caller = await s.session()
        await caller.holds(*range(10_000))
        assert len([m for m in caller.messages if m.HasField("prefix_cache")]) == 3


@pytest.mark.parametrize(
    ("kind", "log", "scopes"),
    [
        (Handler, PrefixLog(), ("generate",)),
        (Handler, None, ("generate", "relay")),
        (Plain, None, ("generate", "relay")),
    ],
    ids=["not a relay", "does not tell", "has none"],
)
async def test_who_is_not_told_is_told_so(kind, log, scopes):
    async with scene(log, kind, load_busy_interval=0.01) as s:
        if log is not None:
            log.stored(1)
        caller = await s.session(*scopes)
        await caller.start()
        await s.handler.next()
        for _ in range(3):
            await caller.read()
        assert not caller.messages[0].ready.prefix_cache_events
        assert not any(message.HasField("prefix_cache") for message in caller.messages)
