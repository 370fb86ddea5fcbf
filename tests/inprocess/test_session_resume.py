"""Sessions that outlive their connections, before a scripted handler and over real sockets.

A connection is lost by cancelling its call, which the service cannot tell from a cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.chassis.common_settings import CommonSettings
from services.chassis.detached_sessions import ResumableSessions, ResumeLimits
from services.chassis.errors import Fault, fault_from_rpc_error, reason_name
from services.chassis.host import Host
from services.chassis.model_handler import Outlet
from services.chassis.model_streams import StreamLimits
from tests.support.auth import bearer, until
from tests.support.inprocess import model_stub
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S

WINDOW = 600.0
"""Longer than anything waits: nothing here ends because it is over."""


class Handler:
    """Keeps the outlets of requests by prompt, and which of them were cancelled."""

    def __init__(self) -> None:
        self.outlets: dict[str, Outlet] = {}
        self.starts: list[str] = []
        self.cancelled: set[str] = set()

    def open(self, request: Any, context: Any, outlet: Outlet) -> Callable[[], None]:
        self.outlets[request.prompt] = outlet
        self.starts.append(request.prompt)
        return lambda: self.cancelled.add(request.prompt)

    def ready(self) -> session_pb2.SessionReady:
        return session_pb2.SessionReady(backend_id="scripted")

    def load(self) -> None:
        return None

    def say(self, prompt: str, *tokens: int, last: bool = False, text: str = "") -> None:
        chunk = pb.GenerateChunk(token_ids=tokens, text=text)
        if last:
            chunk.finish_reason = pb.FINISH_REASON_STOP
        raw = chunk.SerializeToString()
        self.outlets[prompt].chunk(raw, last=last, tokens=len(tokens))


@dataclass
class Caller:
    """One connection, by hand."""

    call: Any
    ready: session_pb2.SessionReady
    got: list[session_pb2.SessionResponse] = field(default_factory=list)

    async def send(self, **fields: Any) -> None:
        await self.call.write(session_pb2.SessionRequest(**fields))

    async def start(self, number: int, *prompts: str, stream: int = 1, **fields: Any) -> None:
        frames = [
            session_pb2.SessionRequestFrame(
                stream=stream + n, start=pb.GenerateRequest(model="m", prompt=prompt)
            )
            for n, prompt in enumerate(prompts)
        ]
        await self.send(sequence=number, frames=frames, **fields)

    async def next(self) -> session_pb2.SessionResponse:
        async with asyncio.timeout(BOUND_S):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        self.got.append(message)
        return message

    async def tokens(self, count: int, stream: int = 1) -> list[int]:
        """Reads until so many tokens of the stream have come."""
        found: list[int] = []
        while len(found) < count:
            message = await self.next()
            for frame in message.frames:
                if frame.stream == stream:
                    found += frame.chunk.token_ids
        return found

    async def fault(self) -> Fault:
        """The status that ends the connection."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(BOUND_S):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        return fault_from_rpc_error(caught.value)

    @property
    def last(self) -> int:
        return max((message.sequence for message in self.got), default=0)


class Scene:
    def __init__(self, handler: Handler, host: Host, keys: LocalKeys, channel: Any) -> None:
        self.handler = handler
        self.host = host
        self.keys = keys
        self._stub = model_stub(channel)

    @property
    def sessions(self) -> ResumableSessions:
        assert self.host.model_service is not None
        return self.host.model_service.resumable

    async def connect(self, **who: Any) -> Caller:
        call = self._stub.Session(metadata=bearer(self.keys.token("generate", **who)))
        first = await call.read()
        assert first.sequence == 0
        return Caller(call, first.ready)

    async def opened(self, *prompts: str, **who: Any) -> Caller:
        """A resumable session that has started these requests."""
        caller = await self.connect(**who)
        await caller.start(1, *prompts, open=session_pb2.SessionOpen(resumable=True))
        await until_true(lambda: set(prompts) <= set(self.handler.outlets))
        return caller

    async def lose(self, caller: Caller) -> None:
        """Its connection is gone, and the service knows."""
        before = self.sessions.detached
        caller.call.cancel()
        await until_true(lambda: self.sessions.detached == before + 1)

    async def resumed(self, caller: Caller, last: int | None = None, **who: Any) -> Caller:
        """Another connection of the same session, before its answer was read."""
        again = await self.connect(**who)
        await again.send(
            resume=session_pb2.SessionResume(
                session_id=caller.ready.session_id,
                last_sequence=caller.last if last is None else last,
            )
        )
        return again


async def until_true(condition: Callable[[], object]) -> None:
    async def there() -> bool:
        return bool(condition())

    await until(there)


@asynccontextmanager
async def scene(
    window: float = WINDOW, most: int = 100, most_bytes: int = 1 << 28, **limits: Any
) -> AsyncIterator[Scene]:
    keys = LocalKeys()
    handler = Handler()
    settings = CommonSettings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", registry="none", drain_timeout=0.5
    )
    async with Host.open("anabranch-router", settings, key_source=keys) as host:
        host.add_model_service(
            handler,
            limits=StreamLimits(**limits),
            resume=ResumeLimits(window=window, most_detached=most, most_bytes=most_bytes),
        )
        await host.start()
        await host.serve()
        async with grpc.aio.insecure_channel(host.address) as channel:
            yield Scene(handler, host, keys, channel)


def reason(fault: Fault) -> str:
    return reason_name(fault.reason)


async def test_a_session_that_does_not_ask_ends_with_its_connection():
    async with scene() as s:
        caller = await s.connect()
        assert caller.ready.resume_window.seconds == WINDOW
        await caller.start(0, "a")
        await until_true(lambda: s.handler.starts)
        s.handler.say("a", 1)
        assert (await caller.next()).sequence == 0
        caller.call.cancel()
        await until_true(lambda: s.handler.cancelled == {"a"})
        assert s.sessions.detached == 0
        again = await s.resumed(caller)
        assert reason(await again.fault()) == "SESSION_LOST"


async def test_a_service_without_a_window_offers_nothing_and_ignores_who_asks():
    async with scene(window=0.0) as s:
        caller = await s.opened("a")
        assert not caller.ready.session_id
        s.handler.say("a", 1)
        assert (await caller.next()).sequence == 0
        caller.call.cancel()
        await until_true(lambda: s.handler.cancelled == {"a"})


async def test_a_resumed_session_gets_exactly_what_it_missed():
    async with scene() as s:
        caller = await s.opened("a", "b")
        s.handler.say("a", 1)
        assert await caller.tokens(1) == [1]
        assert caller.last == 1
        assert caller.got[0].ack == 1
        # Sent, but never read: the caller has only message 1.
        s.handler.say("a", 2)
        await asyncio.sleep(0)
        await s.lose(caller)
        s.handler.say("a", 3)
        s.handler.say("b", 7, last=True)

        again = await s.resumed(caller)
        answer = await again.next()
        assert answer.resumed.received == 1
        assert answer.sequence == 0
        s.handler.say("a", 4, last=True)
        tokens: dict[int, list[int]] = {1: [], 2: []}
        ended = []
        while len(ended) < 2:
            message = await again.next()
            assert message.sequence == again.got[-2].sequence + (2 if len(again.got) == 2 else 1)
            for frame in message.frames:
                tokens[frame.stream] += frame.chunk.token_ids
                ended += [frame.stream] * frame.last
        assert tokens == {1: [2, 3, 4], 2: [7]}
        assert sorted(ended) == [1, 2]
        assert s.sessions.resumed == 1
        assert not s.handler.cancelled


async def test_what_never_arrived_is_taken_once_and_what_did_is_ignored():
    async with scene() as s:
        caller = await s.opened("a")
        await s.lose(caller)
        again = await s.resumed(caller)
        assert (await again.next()).resumed.received == 1
        await again.start(1, "a")  # a repetition, although it had arrived
        await again.start(2, "b", stream=2)
        await until_true(lambda: s.handler.starts == ["a", "b"])
        s.handler.say("b", 1, last=True)
        assert await again.tokens(1, stream=2) == [1]
        assert again.got[-1].ack == 2


async def test_acknowledged_messages_are_forgotten_and_not_repeated():
    async with scene() as s:
        caller = await s.opened("a")
        for token in range(3):
            s.handler.say("a", token)
            await caller.tokens(1)
        await caller.send(ack=2)
        await caller.start(2, "b", stream=2)  # so that the acknowledgement has arrived, too
        await until_true(lambda: len(s.handler.starts) == 2)
        await s.lose(caller)
        again = await s.resumed(caller, last=2)
        assert (await again.next()).HasField("resumed")
        assert (await again.next()).sequence == 3


async def test_who_comes_second_takes_over_and_the_first_is_told():
    async with scene() as s:
        first = await s.opened("a")
        s.handler.say("a", 1)
        await first.tokens(1)
        second = await s.resumed(first)
        assert (await second.next()).HasField("resumed")
        assert reason(await first.fault()) == "CANCELLED"
        s.handler.say("a", 2, last=True)
        assert await second.tokens(1) == [2]
        third = await s.resumed(first, last=second.last)
        assert (await third.next()).HasField("resumed")
        assert s.sessions.detached == 0
        assert not s.handler.cancelled


@pytest.mark.parametrize("who", [{"client_id": "other"}, {"tenant": "other"}])
async def test_another_client_or_tenant_learns_nothing_and_changes_nothing(who):
    async with scene() as s:
        caller = await s.opened("a")
        stranger = await s.resumed(caller, **who)
        refused = await stranger.fault()
        guess = await s.connect(**who)
        await guess.send(resume=session_pb2.SessionResume(session_id="x" * 32))
        unknown = await guess.fault()
        assert (refused.reason, refused.message) == (unknown.reason, unknown.message)
        assert reason(refused) == "SESSION_LOST"
        assert refused.code is grpc.StatusCode.ABORTED
        s.handler.say("a", 1)
        assert await caller.tokens(1) == [1]


@pytest.mark.parametrize(
    "guess", ["", "1.2.x", "99999999999999999999.1.x", "0.0.", "é\x00", "a.b.c"]
)
async def test_ids_that_are_made_up_are_refused(guess):
    async with scene() as s:
        caller = await s.connect()
        await caller.send(resume=session_pb2.SessionResume(session_id=guess))
        assert reason(await caller.fault()) == "SESSION_LOST"


async def test_ids_cannot_be_foreseen():
    async with scene() as s:
        ids = {(await s.connect()).ready.session_id for _ in range(5)}
        assert len(ids) == 5
        assert all(len(one) >= 32 for one in ids)


async def test_after_the_window_the_requests_are_cancelled_and_the_session_is_lost():
    async with scene(window=0.2) as s:
        caller = await s.opened("a", "b")
        caller.call.cancel()
        await until_true(lambda: s.handler.cancelled == {"a", "b"})
        assert s.sessions.detached == 0
        assert s.sessions.lost["expired"] == 1
        again = await s.resumed(caller)
        fault = await again.fault()
        assert reason(fault) == "SESSION_LOST"
        assert fault.work == "maybe_billed"
        assert "open a new one" in fault.message


async def test_an_expired_credential_resumes_nothing_and_a_fresh_one_does():
    async with scene() as s:
        caller = await s.opened("a")
        await s.lose(caller)
        late = s._stub.Session(metadata=bearer(s.keys.token("generate", life=-60)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        again = await s.resumed(caller)
        assert (await again.next()).HasField("resumed")


async def test_what_gathers_without_a_connection_is_joined_and_bounded():
    async with scene(session_buffer_bytes=100_000) as s:
        caller = await s.opened("a", "b")
        await s.lose(caller)
        for token in range(5_000):
            s.handler.say("a", token % 100)
        assert s.sessions.detached_bytes < 20_000
        for _ in range(60):
            s.handler.say("b", text="x" * 2_000)
        await until_true(lambda: s.handler.cancelled == {"a", "b"})
        assert s.sessions.detached_bytes == 0
        for _ in range(2):
            again = await s.resumed(caller)
            assert reason(await again.fault()) == "SLOW_READER"
        assert s.sessions.lost == {"overflow": 1}


async def test_a_caller_that_never_acknowledges_is_cut_off():
    async with scene(session_buffer_bytes=50_000) as s:
        caller = await s.opened("a")
        for _ in range(40):
            s.handler.say("a", text="x" * 2_000)
            await asyncio.sleep(0)
        fault = await caller.fault()
        assert reason(fault) == "SLOW_READER"
        assert "acknowledge" in fault.message
        await until_true(lambda: s.handler.cancelled == {"a"})


async def test_all_sessions_together_hold_no_more_than_allowed():
    async with scene(most_bytes=30_000) as s:
        first = await s.opened("a")
        second = await s.opened("b", client_id="other")
        await s.lose(first)
        await s.lose(second)
        for _ in range(20):
            s.handler.say("b", text="x" * 1_000)
            s.handler.say("a", text="x" * 1_000)
        await until_true(lambda: s.sessions.detached == 1)
        assert s.sessions.detached_bytes <= 30_000
        assert s.sessions.lost["evicted"] == 1


async def test_beyond_the_limit_the_client_that_has_most_loses_its_oldest():
    async with scene(most=3) as s:
        other = await s.opened("other", client_id="other")
        await s.lose(other)
        mine = [await s.opened(f"mine-{n}") for n in range(3)]
        for caller in mine[:2]:
            await s.lose(caller)
        mine[2].call.cancel()
        await until_true(lambda: s.handler.cancelled == {"mine-0"})
        assert s.sessions.detached == 3


async def test_close_ends_a_session_at_once():
    async with scene() as s:
        caller = await s.opened("a")
        await caller.send(close=True)
        assert await caller.call.read() is grpc.aio.EOF
        assert await caller.call.code() is grpc.StatusCode.OK
        assert s.handler.cancelled == {"a"}
        assert s.sessions.detached == 0


async def test_a_half_close_is_no_end_while_something_may_not_have_arrived():
    async with scene() as s:
        caller = await s.opened("a")
        await caller.call.done_writing()
        s.handler.say("a", 1, last=True)
        assert await caller.call.read() is not grpc.aio.EOF
        assert await caller.call.read() is grpc.aio.EOF
        again = await s.resumed(caller)
        assert (await again.next()).HasField("resumed")
        assert await again.tokens(1) == [1]


@pytest.mark.parametrize(
    "message",
    [
        {"sequence": 3, "frames": [{"stream": 9, "cancel": {}}]},
        {"frames": [{"stream": 1, "cancel": {}}]},
        {"ack": 99},
        {"sequence": 2, "frames": [{"stream": 9, "cancel": {}}]},
    ],
    ids=["a gap", "no number", "an acknowledgement of the future", "a cancel of nothing"],
)
async def test_a_caller_that_breaks_the_numbering_ends_its_session(message):
    async with scene() as s:
        caller = await s.opened("a")
        await caller.send(**message)
        assert reason(await caller.fault()) == "SESSION_PROTOCOL"
        await until_true(lambda: s.handler.cancelled == {"a"})
        again = await s.resumed(caller, last=0)
        assert reason(await again.fault()) == "SESSION_LOST"


async def test_to_resume_after_what_was_never_sent_is_refused():
    async with scene() as s:
        caller = await s.opened("a")
        again = await s.resumed(caller, last=5)
        assert reason(await again.fault()) == "SESSION_PROTOCOL"


async def test_a_process_that_shuts_down_keeps_no_session_waiting():
    async with scene() as s:
        caller = await s.opened("a")
        await s.lose(caller)
        assert s.host.model_service is not None
        s.host.model_service.go_away(5.0, "shutting down")
        assert s.handler.cancelled == {"a"}
        assert s.sessions.detached == 0


async def test_a_session_that_waits_is_told_to_leave_when_it_comes_back():
    async with scene() as s:
        caller = await s.opened("a")
        await s.lose(caller)
        assert s.host.model_service is not None
        s.host.model_service.retire(5.0, "being replaced")
        again = await s.resumed(caller)
        while not (await again.next()).HasField("resumed"):
            pass
        assert (await again.next()).go_away.reason == "being replaced"
        assert not s.host.model_service.idle
        s.handler.say("a", 1, last=True)
        assert await again.tokens(1) == [1]
        await again.send(ack=again.last)
        assert await again.call.read() is grpc.aio.EOF
        assert s.host.model_service.idle
