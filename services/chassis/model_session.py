"""One connection of a session: reads and writes for the session that it carries.

Where sessions are resumable, its first message decides which one that is: a new one, or one that
lost an earlier connection. Frames that become ready together, such as those of one engine step,
leave together. What a session is, is session_state.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from anabranch.api_keys import looks_like_key
from anabranch.v1 import errors_pb2, relay_pb2
from services.chassis.authn import Verifier, bearer_token
from services.chassis.caller_writes import reads_too_slowly
from services.chassis.detached_sessions import Elsewhere, ResumableSessions
from services.chassis.errors import Fault, Violation, Work, invalid
from services.chassis.guard import too_large
from services.chassis.model_handler import ModelHandler
from services.chassis.model_streams import ActiveRequests
from services.chassis.principal import Principal, current_address
from services.chassis.session_state import SessionState, protocol_fault
from services.chassis.session_wire import SessionWire, WireLost
from services.chassis.turn import Soon, turn_of

# Well within what is left of a token when the verifier exchanges its key again.
_LOOK_AT_KEY_S = 15.0


class HandOver(Exception):
    """The session is a sibling's: what the caller said first goes there, and all that follows."""

    def __init__(self, where: Elsewhere, opening: bytes) -> None:
        super().__init__(str(where))
        self.where = where
        self.opening = opening


class Session:
    """Serves one Session RPC until either side ends it, or another connection takes over.

    Raises Fault for what ends the whole session: SESSION_PROTOCOL, SLOW_READER,
    CREDENTIAL_REJECTED for a bad renewal, SESSION_LOST; and HandOver.
    """

    def __init__(
        self,
        handler: ModelHandler,
        requests: ActiveRequests,
        principal: Principal,
        verifier: Verifier,
        wire: SessionWire,
        resumable: ResumableSessions,
        *,
        authorization: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`authorization` is the metadata that `principal` was verified from."""
        self._credential = authorization.partition(" ")[2].strip()
        self._address = current_address()
        self._handler = handler
        self._requests = requests
        self._limits = requests.limits
        self._verifier = verifier
        self._wire = wire
        self._resumable = resumable
        self._clock = clock
        self._wake = Soon(self._send, turn_of(asyncio.get_running_loop()))
        self._attention = asyncio.Event()
        self._failure: Exception | None = None
        self._blocked = False
        self._ended = False
        self._state = SessionState(handler, requests, principal, verifier, self._wake)
        self._offered_id = ""
        self._answer: bytes | None = None
        self._notice: tuple[float, str] | None = None
        self._input_over = False
        self._displaced = False

    async def serve(self) -> None:
        """Runs the session. Returns when the caller has half-closed and all is answered."""
        lost = False
        try:
            await self._serve()
            lost = True
        except WireLost as exc:
            lost = True
            raise exc.fault from exc
        except asyncio.CancelledError:
            lost = True
            raise
        finally:
            self._let_go(lost=lost)

    def go_away(self, time_left: float, reason: str) -> None:
        """Tells the caller to leave; running streams go on."""
        self._state.go_away(time_left, reason)

    def go_away_once_open(self, time_left: float, reason: str) -> None:
        """The same, but not before its first message: that may resume what is to be finished."""
        if self._resumable.offered:
            self._notice = (time_left, reason)
        else:
            self.go_away(time_left, reason)

    def displace(self) -> None:
        """Another connection carries the session from now on; this one ends."""
        self._displaced = True
        self._attention.set()

    async def _serve(self) -> None:
        greeting = relay_pb2.RelaySessionResponse(ready=self._handler.ready())
        greeting.ready.prefix_cache_events = self._state.tells_prefixes
        self._offered_id = self._resumable.offer(greeting.ready, self._limits.session_buffer_bytes)
        greeted = self._wire.send(greeting.SerializeToString())
        self._blocked = self._state.output.behind = not greeted
        unblocking: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read_all())
                ticker = tasks.create_task(self._tick())
                renewing = tasks.create_task(self._keep_api_key_renewed())
                self._wake.set()
                while not self._is_over():
                    if self._blocked and (unblocking is None or unblocking.done()):
                        unblocking = tasks.create_task(self._unblock())
                    await self._attention.wait()
                    self._attention.clear()
                reader.cancel()
                ticker.cancel()
                renewing.cancel()
        except BaseExceptionGroup as group:
            # One failure ends the session; its siblings were only cancelled by it.
            raise group.exceptions[0] from None

    def _let_go(self, *, lost: bool) -> None:
        """The connection is over. A resumable session waits for another one, unless it is too."""
        self._ended = True
        state = self._state
        if self._displaced:
            return
        over = state.closed or (state.leaving and state.idle and not state.output.unconfirmed)
        if lost and state.resumable and not over:
            state.output.behind = True
            self._resumable.detach(state)
        else:
            self._resumable.remove(state)

    # Reading

    async def _read_all(self) -> None:
        opened = False
        while (message := await self._wire.receive()) is not None:
            if len(message) > self._limits.max_message_bytes:
                raise too_large(len(message), self._limits.max_message_bytes)
            try:
                parsed = relay_pb2.RelaySessionRequest.FromString(message)
            except DecodeError as exc:
                raise invalid([Violation("", "is not a SessionRequest message")]) from exc
            if not opened:
                opened = True
                self._open(parsed, message)
                if self._notice is not None:
                    self._state.go_away(*self._notice)
            if parsed.authorization:
                await self._renew(parsed.authorization)
            if self._displaced:
                return  # the caller repeats on its new connection what is not taken here
            self._state.take(parsed)
        self._input_over = True
        self._wake.set()

    def _open(self, first: relay_pb2.RelaySessionRequest, raw: bytes) -> None:
        if first.HasField("resume"):
            self._resume(first, raw)
        elif first.open.resumable and self._offered_id:
            self._resumable.add(self._offered_id, self._state)
            self._state.carrier = self

    def _resume(self, first: relay_pb2.RelaySessionRequest, raw: bytes) -> None:
        principal = self._state.principal
        try:
            state = self._resumable.claim(first.resume.session_id, principal)
        except Elsewhere as where:
            raise HandOver(where, raw) from None
        # From here on this connection answers for it, whatever happens.
        self._state = state
        state.carried_by(self, self._wake)
        state.output.behind = False
        state.principal = principal
        state.resume_after(first.resume.last_sequence)
        answer = relay_pb2.RelaySessionResponse()
        answer.resumed.received = state.received
        self._answer = answer.SerializeToString()
        self._wake.set()

    async def _renew(self, authorization: str) -> None:
        credential = bearer_token(authorization)
        renewed = await self._verifier.verify(credential)
        if renewed.client_id != self._state.principal.client_id:
            raise protocol_fault("a session is renewed by the client that opened it")
        renewed.check_address(self._address)
        self._credential = credential
        self._state.principal = renewed

    async def _keep_api_key_renewed(self) -> None:
        """A caller with an API key has nothing newer to send: its key is exchanged again here.

        Once it is refused, running requests go on and new ones are refused, as with any token
        that has ended.
        """
        while True:
            await asyncio.sleep(_LOOK_AT_KEY_S)
            credential = self._credential
            if not looks_like_key(credential):
                continue
            try:
                renewed = await self._verifier.verify(credential)
                renewed.check_address(self._address)
            except Fault:
                continue
            if credential is self._credential:
                self._state.principal = renewed

    # Writing

    def _send(self) -> None:
        """Sends a message with all there is by now, in the loop's own turn: no task is woken."""
        # Another connection may carry the session by now: what is taken here would be lost to it.
        if self._displaced or self._ended or self._failure is not None:
            return
        try:
            if self._state.output.overflowed:
                raise reads_too_slowly(
                    "the session's buffer is full: read and acknowledge faster, or use more "
                    "sessions"
                )
            if self._blocked:
                return
            message = self._answer or self._state.next_message()
            if self._answer is not None:
                self._answer = None
                self._wake.set()
            if message is not None and not self._wire.send(message):
                self._blocked = self._state.output.behind = True
                self._attention.set()
        except Exception as exc:  # noqa: BLE001 - raised again by the task that serves
            self._failure = exc
            self._attention.set()
            return
        if self._state.closed or self._state.idle:
            self._attention.set()

    async def _unblock(self) -> None:
        await self._wire.drained()
        self._blocked = False
        if not self._displaced:
            self._state.output.behind = False
        self._wake.set()

    def _is_over(self) -> bool:
        """Whether nothing is left to be said. Raises Fault and WireLost for a bad end."""
        if self._displaced:
            raise Fault(
                errors_pb2.ERROR_REASON_CANCELLED,
                "another connection resumed this session",
                work=Work.OUTPUT_SEEN,
            )
        if self._failure is not None:
            raise self._failure
        return self._state.closed or self._all_is_answered()

    def _all_is_answered(self) -> bool:
        """Whether a caller that wants no more has got everything."""
        state = self._state
        if not state.idle or self._answer is not None:
            return False
        # A caller that saw go_away half-closes; one that does not is not waited for.
        return self._input_over or (state.leaving and not state.output.unconfirmed)

    async def _tick(self) -> None:
        """Keeps load reports flowing: often while busy, seldom while idle."""
        if self._handler.load() is None:
            return
        # The first report goes at once: until it comes, a relay knows of no limit here.
        self._wake.set()
        last = self._clock()
        was_busy = False
        while True:
            await asyncio.sleep(self._limits.load_busy_interval)
            now = self._clock()
            state = self._state
            busy = self._is_busy()
            # What became idle says so once more; and what is due stays so until it has been said.
            due = busy or was_busy or state.load_due or state.prefixes_wait
            due = due or state.models_changed
            was_busy = busy
            if due or now - last >= self._limits.load_idle_interval:
                last = now
                state.load_due = True
                # While output flows the report rides along: a message of its own costs its
                # reader as much as a full one.
                if not state.spoke:
                    self._wake.set()
                state.spoke = False

    def _is_busy(self) -> bool:
        """Whether the load changes; to a relay it matters too what others have brought."""
        if self._state.principal.has("relay"):
            return len(self._requests) > 0
        return self._state.running() > 0
