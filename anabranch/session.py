"""One session: many requests multiplexed over one stream, and over the next one after a loss.

Sends starts and cancels in as few messages as possible, hands arriving frames to their
requests and renews the credential in band. A session that the service keeps is resumed when its
connection is lost; link.py decides what becomes of the requests of one that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from anabranch.connection import Connection
from anabranch.dial import Dial
from anabranch.errors import AnabranchError, Work, error_for, error_from_status
from anabranch.inflight import Inflight
from anabranch.outbox import Outbox
from anabranch.resumption import Resumption
from anabranch.tokens import TokenSource
from anabranch.v1 import relay_pb2, session_pb2

# Seconds after which what came is acknowledged, however little it was.
ACK_AFTER = 1.0


@dataclass(frozen=True)
class SessionSettings:
    """What every session of a client shares; times in seconds."""

    target: str
    dial: Dial
    tokens: TokenSource
    connect_timeout: float
    resume: bool = True


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

    def __init__(
        self,
        settings: SessionSettings,
        owner: SessionOwner,
        *,
        delay: float,
        rng: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._delay = delay
        self._resumption = Resumption(rng)
        self._streams: dict[int, Inflight] = {}
        self._outbox = Outbox(self._streams)
        self._last_stream = 0
        self._connected = False
        self._hung_up = False
        self._said_all = False
        self._reauthorized = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self.wake = asyncio.Event()
        self.authorization = ""
        self.ready: session_pb2.SessionReady | None = None
        self.retired = False
        self.login_failed = False
        """Whether it ended because no credential could be had."""

    @property
    def resumable(self) -> bool:
        """Whether it can survive the loss of its connection."""
        return self._settings.resume and self.ready is not None and bool(self.ready.session_id)

    def add(self, inflight: Inflight) -> None:
        """Takes a request; it is sent once the session is ready."""
        self._last_stream += 1
        number = self._last_stream
        inflight.attempted()
        inflight.on_abandon = partial(self._cancel, number)
        self._streams[number] = inflight
        self._outbox.start(number)
        self.wake.set()

    def retire(self) -> None:
        """Takes no new requests; running ones finish, then it ends."""
        if not self.retired:
            self.retired = True
            self.wake.set()
            self._owner.on_retire(self)

    def close(self) -> bool:
        """Tells a service that would keep the session that it is over.

        False when it cannot be told, or needs not be: hang up instead.
        """
        if not (self._connected and self.resumable):
            return False
        self._hung_up = True
        self.retire()
        self.wake.set()
        return True

    async def run(self) -> None:
        """Opens the stream and serves it until it ends, over as many connections as it takes."""
        error = error_for("INTERNAL", "the client failed, see its log", grpc.StatusCode.INTERNAL)
        try:
            await asyncio.sleep(self._delay)
            await self._connections()
            error = self._lost("the service ended the session")
        except AnabranchError as failure:
            error = failure
        except asyncio.CancelledError:
            self._hung_up = True
            raise
        finally:
            self.retired = True
            self._connected = False
            if self._ack_timer is not None:
                self._ack_timer.cancel()
            if self._hung_up:
                error = error_for("CANCELLED", "the client was closed", grpc.StatusCode.CANCELLED)
            self._owner.on_end(self, self._orphans(), error)

    async def _connections(self) -> None:
        """Returns when it ended in order. Raises the AnabranchError that it ended with."""
        while True:
            try:
                await self._connect()
                return
            except AnabranchError as failure:
                began, self._connected = self._connected, False
                if not self._may_go_on(failure, began=began):
                    raise
                delay = self._next_attempt(failure, began=began)
            # Another connection may reach another instance: new requests need not wait for this.
            self.retire()
            await asyncio.sleep(delay)

    async def _connect(self) -> None:
        settings = self._settings
        try:
            self.authorization = await settings.tokens.authorization()
        except AnabranchError:
            self.login_failed = self.ready is None
            raise
        connection = Connection(settings.target, settings.dial, settings.connect_timeout, self)
        await connection.run(self.authorization)

    def _may_go_on(self, failure: AnabranchError, *, began: bool) -> bool:
        """Whether there is a session to be resumed, and anything left to do in it."""
        if self._hung_up or not self.resumable or not self._outbox.opened:
            return False
        if failure.reason == "CREDENTIAL_REJECTED":
            if began or self._reauthorized:
                return False
            self._reauthorized = True
            if not self._settings.tokens.reject(self.authorization):
                return False
        return bool(self._streams or self._outbox.pending)

    def _next_attempt(self, failure: AnabranchError, *, began: bool) -> float:
        assert self.ready is not None, "only then it is resumable"
        window = self.ready.resume_window.ToNanoseconds() / 1e9
        now = asyncio.get_running_loop().time()
        try:
            return self._resumption.after(failure, began=began, window=window, now=now)
        except AnabranchError:
            for inflight in self._streams.values():
                inflight.lost_at = inflight.lost_at or self._resumption.lost_at
            raise

    # What the connection tells and asks

    def greet(self, ready: session_pb2.SessionReady) -> relay_pb2.RelaySessionRequest | None:
        """The service is there: a new session, or one to be resumed."""
        if self.ready is None:
            self.ready = ready
            self._connected = True
            if self.resumable:
                self._outbox.open_resumable(ready.resume_buffer_bytes)
            self._owner.on_ready(self)
            return None
        if not ready.session_id:
            raise error_for(
                "SESSION_LOST",
                f"what answers at {self._settings.target} now keeps no sessions",
                grpc.StatusCode.ABORTED,
            )
        message = relay_pb2.RelaySessionRequest()
        message.resume.session_id = self.ready.session_id
        message.resume.last_sequence = self._outbox.heard
        return message

    def resumed(self, answer: session_pb2.SessionResumed) -> None:
        """The service goes on with the session; what never arrived is sent again."""
        self._connected = True
        self._reauthorized = False
        self._outbox.rewind(answer.received)
        self.wake.set()

    def hear(self, message: relay_pb2.RelaySessionResponse, size: int) -> None:
        """Hands the frames to their requests."""
        if message.sequence and not self._is_next(message.sequence, size):
            return
        if message.ack:
            self._outbox.confirmed(message.ack)
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
            self.wake.set()

    def next_message(self) -> relay_pb2.RelaySessionRequest | None:
        """What the outbox has; the last word of a session that is over."""
        if self.has_finished() and not self._said_all and self.resumable:
            self._said_all = self._outbox.closing = True
        return self._outbox.next()

    def has_finished(self) -> bool:
        """Whether it takes no more requests and has none left."""
        return self._hung_up or (self.retired and not self._streams)

    async def renew(self) -> None:
        """Sends each new credential before the last one expires."""
        while True:
            self.authorization = await self._settings.tokens.after(self.authorization)
            self._outbox.renewed = self.authorization
            self.wake.set()

    def _is_next(self, sequence: int, size: int) -> bool:
        """Whether the message is new. Raises AnabranchError when one before it is missing."""
        if sequence != self._outbox.heard + 1:
            if sequence <= self._outbox.heard:
                return False
            raise error_for(
                "SESSION_PROTOCOL",
                f"{self._settings.target} sent message {sequence} after {self._outbox.heard}",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        if self._outbox.got(sequence, size) and self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(ACK_AFTER, self._ack)
        if self._outbox.ack_due:
            self.wake.set()
        return True

    def _ack(self) -> None:
        self._ack_timer = None
        if self._outbox.owes_ack:
            self._outbox.ack_due = True
            self.wake.set()

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
            self._outbox.cancel(number)
        self.wake.set()

    def _orphans(self) -> list[Inflight]:
        orphans = list(self._streams.values())
        self._streams.clear()
        for orphan in orphans:
            orphan.on_abandon = None
        return orphans

    def _lost(self, why: str) -> AnabranchError:
        return error_for(
            "BACKEND_LOST", f"{why} ({self._settings.target})", grpc.StatusCode.UNAVAILABLE
        )
