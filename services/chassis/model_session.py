"""One caller's Session: many requests over one stream, one message per turn of the loop.

Chunks are passed as bytes (relay.proto). Frames that become ready together, such
as those of one engine step, leave together. Routing and generation are elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from services.chassis.authn import Principal, Verifier, bearer_token, denied
from services.chassis.caller_writes import reads_too_slowly, write_to_caller
from services.chassis.coalescing import Frame, coalesce
from services.chassis.errors import Fault, Violation, invalid, to_status
from services.chassis.guard import too_large
from services.chassis.model_handler import ModelHandler
from services.chassis.model_streams import ActiveRequest, ActiveRequests

# Well below what a receiver accepts, since the last frame may go beyond it.
_MESSAGE_BYTES = 1024 * 1024
# Frames that wait before they are joined: more than one step leaves behind, per stream.
_JOIN_AT_LEAST = 256
_JOIN_PER_STREAM = 8


def _size(frame: Frame) -> int:
    return len(frame[1] or b"") + len(frame[2] or b"")


def _protocol(message: str) -> Fault:
    return Fault(errors_pb2.ERROR_REASON_SESSION_PROTOCOL, message)


class _Stream:
    """The outlet of one request of a session."""

    __slots__ = ("_number", "_session")

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._session.queue((self._number, raw, None, last, tokens), len(raw))

    def fail(self, fault: Fault) -> None:
        raw = to_status(fault).SerializeToString()
        self._session.queue((self._number, None, raw, True, 0), len(raw))


class Session:
    """Serves one Session RPC until either side ends it.

    Raises Fault for what ends the whole session: SESSION_PROTOCOL, SLOW_READER,
    CREDENTIAL_REJECTED for a bad renewal.
    """

    def __init__(
        self,
        handler: ModelHandler,
        requests: ActiveRequests,
        principal: Principal,
        verifier: Verifier,
        context: grpc.aio.ServicerContext,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._requests = requests
        self._limits = requests.limits
        self._principal = principal
        self._verifier = verifier
        self._context = context
        self._clock = clock
        self._streams: dict[int, ActiveRequest] = {}
        self._highest = 0
        self._starts = 0
        self._pending: list[Frame] = []
        self._pending_bytes = 0
        self._join_at = _JOIN_AT_LEAST
        self._go_away: session_pb2.GoAway | None = None
        self._leaving = False
        self._wake = asyncio.Event()
        self._input_over = False
        self._overflowed = False
        self._load_due = True
        self._spoke = False

    async def serve(self) -> None:
        """Runs the session. Returns when the caller has half-closed and all is answered."""
        try:
            await self._write(relay_pb2.RelaySessionResponse(ready=self._handler.ready()))
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read_all())
                ticker = tasks.create_task(self._tick())
                await self._write_all()
                reader.cancel()
                ticker.cancel()
        except BaseExceptionGroup as group:
            # One failure ends the session; its siblings were only cancelled by it.
            raise group.exceptions[0] from None
        finally:
            for request in tuple(self._streams.values()):
                request.abandon()

    def go_away(self, time_left: float, reason: str) -> None:
        """Tells the caller to leave; running streams go on."""
        if self._leaving:
            return
        notice = session_pb2.GoAway(reason=reason)
        notice.time_left.FromMilliseconds(int(time_left * 1000))
        self._go_away = notice
        self._leaving = True
        self._wake.set()

    def queue(self, frame: Frame, size: int) -> None:
        """Adds a frame to the next message. Called by the session's own streams."""
        self._pending.append(frame)
        self._pending_bytes += size
        if frame[3]:
            self._streams.pop(frame[0], None)
            # A slot came free: whoever waits for one hears of it with the very same message.
            self._load_due = True
        if len(self._pending) >= self._join_at:
            self._join_pending()
        if self._pending_bytes > self._limits.session_buffer_bytes:
            self._overflowed = True
        self._wake.set()

    def _join_pending(self) -> None:
        """The caller is behind by several steps: what waits for it is made compact."""
        self._pending = coalesce(self._pending)
        self._pending_bytes = sum(map(_size, self._pending))
        # Joining again pays only once as much has gathered as is there now.
        least = max(_JOIN_AT_LEAST, _JOIN_PER_STREAM * len(self._streams))
        self._join_at = max(least, 2 * len(self._pending))

    # Reading

    async def _read_all(self) -> None:
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                self._input_over = True
                self._wake.set()
                return
            if len(message) > self._limits.max_message_bytes:
                raise too_large(len(message), self._limits.max_message_bytes)
            try:
                parsed = relay_pb2.RelaySessionRequest.FromString(message)
            except DecodeError as exc:
                raise invalid([Violation("", "is not a SessionRequest message")]) from exc
            if parsed.authorization:
                await self._renew(parsed.authorization)
            for frame in parsed.frames:
                self._take(frame)

    async def _renew(self, authorization: str) -> None:
        renewed = await self._verifier.verify(bearer_token(authorization))
        if renewed.client_id != self._principal.client_id:
            raise _protocol("a session is renewed by the client that opened it")
        self._principal = renewed

    def _take(self, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        number = frame.stream
        action = frame.WhichOneof("action")
        if number == 0 or action is None:
            raise _protocol("every frame names a stream, from 1 up, and an action")
        if action == "cancel":
            running = self._streams.get(number)
            if running is not None:
                running.cancel()
            elif number > self._highest:
                raise _protocol(f"stream {number} is cancelled but was never started")
            return
        if number in self._streams:
            raise _protocol(f"stream {number} is started but still running")
        self._highest = max(self._highest, number)
        self._starts += 1
        self._start(number, frame)

    def _start(self, number: int, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        stream = _Stream(self, number)
        try:
            self._verifier.check_live(self._principal)
            caller = self._caller(frame)
        except Fault as fault:
            stream.fail(fault)
            return
        if self._leaving:
            stream.fail(
                Fault(
                    errors_pb2.ERROR_REASON_DRAINING,
                    "this session is closing; open another",
                    retry_after=0.0,
                )
            )
            return
        request = self._requests.open(frame.start, stream, caller, traceparent=frame.traceparent)
        if not request.ended:
            self._streams[number] = request

    def _caller(self, frame: relay_pb2.RelaySessionRequestFrame) -> Principal:
        """The identity that the request is accounted to."""
        principal = self._principal
        if frame.HasField("on_behalf_of"):
            if not principal.has("relay"):
                raise denied(frozenset({"relay"}))
            if not frame.on_behalf_of.tenant or not frame.on_behalf_of.client_id:
                raise invalid([Violation("on_behalf_of", "must name a tenant and a client")])
            return Principal(
                client_id=frame.on_behalf_of.client_id,
                tenant=frame.on_behalf_of.tenant,
                scopes=principal.scopes,
                expires_at=principal.expires_at,
                token_id=principal.token_id,
            )
        if not principal.has("generate"):
            raise denied(frozenset({"generate"}))
        return principal

    # Writing

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._overflowed:
                raise reads_too_slowly(
                    "the session's buffer is full: read faster, or use more sessions"
                )
            message = self._next_message()
            if message is not None:
                await self._write(message)
            # A caller that saw go_away half-closes; one that does not is not waited for.
            over = (self._input_over or self._leaving) and self._go_away is None
            if over and not self._streams and not self._pending:
                return

    def _next_message(self) -> relay_pb2.RelaySessionResponse | None:
        if not self._pending and not self._load_due and self._go_away is None:
            return None
        self._spoke = True
        message = relay_pb2.RelaySessionResponse()
        frames = self._batch()
        add = message.frames.add
        for number, chunk, error, last, tokens in frames:
            if error is None:
                add(stream=number, chunk=chunk, last=last, tokens=tokens)
            else:
                add(stream=number, error=error, last=True)
        if self._load_due:
            self._load_due = False
            load = self._handler.load()
            if load is not None:
                load.starts_seen = self._starts
                message.load.CopyFrom(load)
        if self._go_away is not None:
            message.go_away.CopyFrom(self._go_away)
            self._go_away = None
            self._wake.set()
        return message

    def _batch(self) -> list[Frame]:
        """The frames of the next message: all that wait, within what one message may hold."""
        frames = self._pending
        if self._pending_bytes <= _MESSAGE_BYTES:
            self._pending, self._pending_bytes = [], 0
            self._join_at = max(_JOIN_AT_LEAST, _JOIN_PER_STREAM * len(self._streams))
            return frames
        size = count = 0
        while count < len(frames) and (count == 0 or size < _MESSAGE_BYTES):
            size += _size(frames[count])
            count += 1
        self._pending = frames[count:]
        self._pending_bytes -= size
        self._wake.set()
        return frames[:count]

    async def _write(self, message: Any) -> None:
        await write_to_caller(self._context, message, stall=self._limits.write_stall)

    async def _tick(self) -> None:
        """Keeps load reports flowing: often while busy, seldom while idle."""
        if self._handler.load() is None:
            return
        # The first report goes at once: until it comes, a relay knows of no limit here.
        self._wake.set()
        last = self._clock()
        while True:
            await asyncio.sleep(self._limits.load_busy_interval)
            now = self._clock()
            if self._streams or now - last >= self._limits.load_idle_interval:
                last = now
                self._load_due = True
                # While output flows the report rides along: a message of its own costs its
                # reader as much as a full one.
                if not self._spoke:
                    self._wake.set()
                self._spoke = False
