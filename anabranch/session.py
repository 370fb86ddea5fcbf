"""One Session RPC: many requests multiplexed over one stream.

Sends starts and cancels in as few messages as possible, hands arriving frames to their
requests and renews the credential in band. Does not reconnect: link.py decides what becomes
of the requests of a session that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from anabranch.dial import Dial
from anabranch.errors import AnabranchError, Work, error_for, error_from_rpc, error_from_status
from anabranch.inflight import Inflight
from anabranch.tokens import TokenSource
from anabranch.v1 import relay_pb2, session_pb2

METHOD = "/anabranch.v1.ModelService/Session"

# Most bytes of frames put into one message, below the 4 MiB that services accept.
BATCH_BYTES = 1 << 20
# How long a session without requests waits for the service to end it, before it hangs up.
GOODBYE = 5.0


@dataclass(frozen=True)
class SessionSettings:
    """What every session of a client shares; times in seconds."""

    target: str
    dial: Dial
    tokens: TokenSource
    connect_timeout: float


class SessionOwner(Protocol):
    """Hears what happens to a session. Called on the event loop; must not block."""

    def on_ready(self, session: Session) -> None:
        """The service accepted it."""

    def on_retire(self, session: Session) -> None:
        """It takes no new requests."""

    def on_refused(self, session: Session, inflight: Inflight, error: AnabranchError) -> None:
        """The service ended one request with an error."""

    def on_end(self, session: Session, orphans: list[Inflight], error: AnabranchError) -> None:
        """It is over, with these requests unfinished."""


class Session:
    """A session from its first request to its end; `run` drives it."""

    def __init__(self, settings: SessionSettings, owner: SessionOwner, *, delay: float) -> None:
        self._settings = settings
        self._owner = owner
        self._delay = delay
        self._streams: dict[int, Inflight] = {}
        self._starts: list[int] = []
        self._cancels: list[int] = []
        self._last_stream = 0
        self._wake = asyncio.Event()
        self._renewed = ""
        self.authorization = ""
        self.ready: session_pb2.SessionReady | None = None
        self.retired = False
        self.login_failed = False
        """Whether it ended because no credential could be had."""

    def add(self, inflight: Inflight) -> None:
        """Takes a request; it is sent once the session is ready."""
        self._last_stream += 1
        number = self._last_stream
        inflight.attempts += 1
        inflight.sent = False
        inflight.on_abandon = _Abandon(self._cancel, number)
        self._streams[number] = inflight
        self._starts.append(number)
        self._wake.set()

    def retire(self) -> None:
        """Takes no new requests; running ones finish, then it ends."""
        if not self.retired:
            self.retired = True
            self._wake.set()
            self._owner.on_retire(self)

    async def run(self) -> None:
        """Opens the stream and serves it until it ends."""
        error = error_for("INTERNAL", "the client failed, see its log", grpc.StatusCode.INTERNAL)
        try:
            await asyncio.sleep(self._delay)
            try:
                self.authorization = await self._settings.tokens.authorization()
            except AnabranchError:
                self.login_failed = True
                raise
            channel = self._settings.dial()
            try:
                await self._converse(channel)
                error = self._lost("the service ended the session")
            finally:
                await channel.close()
        except AnabranchError as failure:
            error = failure
        except asyncio.CancelledError:
            error = error_for("CANCELLED", "the client was closed", grpc.StatusCode.CANCELLED)
            raise
        finally:
            self.retired = True
            orphans = list(self._streams.values())
            self._streams.clear()
            for orphan in orphans:
                orphan.on_abandon = None
            self._owner.on_end(self, orphans, error)

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            METHOD,
            request_serializer=relay_pb2.RelaySessionRequest.SerializeToString,
            response_deserializer=relay_pb2.RelaySessionResponse.FromString,
        )(metadata=(("authorization", self.authorization),) if self.authorization else ())
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                first = await call.read()
            self._greet(first)
            tasks = [
                asyncio.create_task(self._write(call), name="anabranch-write"),
                asyncio.create_task(self._renew(), name="anabranch-renew"),
            ]
            while (message := await call.read()) is not grpc.aio.EOF:
                self._hear(message)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._settings.target) from None
        except TimeoutError:
            patience = self._settings.connect_timeout
            raise error_for(
                "DEPENDENCY_UNAVAILABLE",
                f"cannot reach {self._settings.target}: no session within {patience:g} s",
                grpc.StatusCode.UNAVAILABLE,
            ) from None
        except asyncio.CancelledError:
            # A local hang-up surfaces here too; only a cancelled task is a cancellation.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            for task in tasks:
                task.cancel()
            call.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _greet(self, first: relay_pb2.RelaySessionResponse) -> None:
        if first is grpc.aio.EOF:
            raise self._lost("the service ended the session at once")
        if not first.HasField("ready"):
            raise error_for(
                "SESSION_PROTOCOL",
                f"{self._settings.target} did not begin the session with `ready`",
                grpc.StatusCode.FAILED_PRECONDITION,
                work=Work.NOT_DISPATCHED,
            )
        self.ready = first.ready
        self._owner.on_ready(self)
        self._hear(first)

    def _hear(self, message: relay_pb2.RelaySessionResponse) -> None:
        streams = self._streams
        for frame in message.frames:
            inflight = streams.get(frame.stream)
            if inflight is None:
                continue  # cancelled here before the service knew
            last = frame.last
            kind = frame.WhichOneof("event")
            if last or kind == "error":
                del streams[frame.stream]
                inflight.on_abandon = None
            if kind == "error":
                self._refuse(inflight, frame.error)
            else:
                inflight.feed(frame.chunk, last=last, tokens=frame.tokens)
        if message.HasField("go_away"):
            self.retire()
        if self.retired and not streams:
            self._wake.set()

    def _refuse(self, inflight: Inflight, raw: bytes) -> None:
        try:
            status = status_pb2.Status.FromString(raw)
        except DecodeError:
            status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="garbled")
        error = error_from_status(status)
        if inflight.heard:
            error.work = Work.OUTPUT_SEEN
            error.metadata.setdefault("tokens_delivered", str(inflight.tokens))
        self._owner.on_refused(self, inflight, error)

    def _cancel(self, number: int) -> None:
        inflight = self._streams.pop(number, None)
        if inflight is not None and inflight.sent:
            self._cancels.append(number)
        self._wake.set()

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        try:
            while True:
                while (message := self._next_message()) is not None:
                    await call.write(message)
                if self.retired and not self._streams:
                    break
                self._wake.clear()
                await self._wake.wait()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over; the reader learns why
        await asyncio.sleep(GOODBYE)
        call.cancel()

    def _next_message(self) -> relay_pb2.RelaySessionRequest | None:
        """Whatever waits to be sent, up to BATCH_BYTES and at least one frame."""
        if not (self._starts or self._cancels or self._renewed):
            return None
        message = relay_pb2.RelaySessionRequest(authorization=self._renewed)
        self._renewed = ""
        for number in self._cancels:
            message.frames.add(stream=number, cancel=session_pb2.SessionCancel())
        self._cancels.clear()
        size = taken = 0
        for number in self._starts:
            if size >= BATCH_BYTES:
                break
            taken += 1
            inflight = self._streams.get(number)
            if inflight is None:
                continue  # given up before it was sent
            start = inflight.payload()
            if size and size + len(start) > BATCH_BYTES:
                taken -= 1
                break
            size += len(start)
            message.frames.add(stream=number, start=start, traceparent=inflight.traceparent)
            inflight.sent = inflight.dispatched = True
        del self._starts[:taken]
        return message if message.frames or message.authorization else None

    async def _renew(self) -> None:
        while True:
            self.authorization = await self._settings.tokens.after(self.authorization)
            self._renewed = self.authorization
            self._wake.set()

    def _lost(self, why: str) -> AnabranchError:
        return error_for(
            "BACKEND_LOST", f"{why} ({self._settings.target})", grpc.StatusCode.UNAVAILABLE
        )


class _Abandon:
    """Cancels one stream of a session, called without arguments."""

    __slots__ = ("_cancel", "_number")

    def __init__(self, cancel: Callable[[int], None], number: int) -> None:
        self._cancel = cancel
        self._number = number

    def __call__(self) -> None:
        self._cancel(self._number)
