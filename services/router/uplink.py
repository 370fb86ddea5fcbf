"""The router's session to one backend: kept open, fed, read, and mourned when it breaks.

Chunks pass as bytes. One message of the backend is handled in one go, so the
callers' sessions each send one message for it. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from anabranch.v1.generation_pb2 import PiiKind
from services.chassis.auth_client import TokenSource
from services.chassis.authn import Principal
from services.chassis.channels import DEFAULT_MAX_MESSAGE_BYTES, open_channel, transport_limits
from services.chassis.errors import (
    Fault,
    Work,
    fault_from_rpc_error,
    fault_from_status,
    fault_of,
)
from services.chassis.http2.client import ClientCall, connect
from services.chassis.http2.frames import Code
from services.chassis.registry import Instance
from services.chassis.turn import Soon, turn_of
from services.router.core.breaker import UNKNOWN
from services.router.core.prefix import PrefixIndex
from services.router.core.values import Health
from services.router.known_backend import KnownBackend
from services.router.receivers import NOBODY, Receiver, end_for_bug
from services.router.unsent import Unsent

_log = logging.getLogger(__name__)

SESSION_METHOD = "/anabranch.v1.ModelService/Session"
_READY_TIMEOUT_S = 10.0
_UNREADABLE = "the backend sent a message that cannot be read"
_BACKOFF_S = (0.05, 2.0)
_RENEW_RETRY_S = 2.0
# A message beyond what a backend takes ends the session, and with it every other request.
MAX_START_BYTES = DEFAULT_MAX_MESSAGE_BYTES - 64 * 1024
# Small calls on the channel of a backend that leaves get this long to end.
_CLOSE_GRACE_S = 10.0


class Uplink:
    """The session to one backend, and the requests on it."""

    def __init__(
        self,
        instance: Instance,
        tokens: TokenSource,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        jitter: random.Random,
        prefixes: PrefixIndex,
    ) -> None:
        self.backend = KnownBackend(instance, on_change, clock)
        self._address = instance.address
        self.channel = open_channel(instance.address)
        self.listed = True
        self._over = False
        self._tokens = tokens
        self._clock = clock
        self._jitter = jitter
        self._prefixes = prefixes
        self._receivers: dict[int, Receiver] = {}
        # The breaker's word for when each was sent, and who of them has had its first token.
        self._sent_in: dict[int, int] = {}
        self._decoding: set[int] = set()
        self._next = 1
        self._starts = 0
        self._outgoing = Unsent()
        self._renewal = ""
        self._call: ClientCall | None = None
        self._loop = asyncio.get_running_loop()
        self._flush_soon = Soon(self._flush, turn_of(self._loop))

    def start(
        self,
        request: bytes,
        prompt_tokens: int,
        blocks: tuple[int, ...],
        caller: Principal,
        traceparent: str,
        receiver: Receiver,
        mask: tuple[PiiKind, ...] = (),
    ) -> int:
        """Puts a serialised request on the session; the returned number cancels it.

        `prompt_tokens` is what the backend has to compute of its prompt, `blocks` names the
        beginnings that it will hold, `mask` what must not leave.
        """
        number = self._next
        self._next += 1
        self._starts += 1
        self._receivers[number] = receiver
        backend = self.backend
        backend.tracker.started(self._starts, prompt_tokens)
        self._sent_in[number] = backend.sent()
        if blocks:
            self._prefixes.sent(backend.id, blocks)
        frame = relay_pb2.RelaySessionRequestFrame(
            stream=number, start=request, traceparent=traceparent
        )
        frame.on_behalf_of.tenant = caller.tenant
        frame.on_behalf_of.client_id = caller.client_id
        if mask:
            frame.mask.extend(mask)
        self._outgoing.append(frame)
        self._flush_soon.set()
        return number

    def cancel(self, number: int) -> None:
        """Asks the backend to stop a request; its last frame still comes."""
        if number in self._receivers:
            generation = self._sent_in.pop(number, UNKNOWN)
            self.backend.abandoned(generation)
            frame = relay_pb2.RelaySessionRequestFrame(stream=number)
            frame.cancel.SetInParent()
            self._outgoing.append(frame)
            self._flush_soon.set()

    def answers(self, number: int, seconds: float) -> None:
        """The first chunk of a request came, so long after it was sent."""
        generation = self._sent_in.get(number)
        if generation is not None:
            self._decoding.add(number)
            self.backend.answers(generation, seconds)

    def disown(self, number: int) -> None:
        """Nobody listens to a request any more; its end is still waited for."""
        if number in self._receivers:
            self._receivers[number] = NOBODY

    def hand_over(self, number: int, receiver: Receiver) -> None:
        """Somebody else listens to a request from now on."""
        if number in self._receivers:
            self._receivers[number] = receiver

    def end_if_silent(self) -> None:
        """Gives the session up when its backend has work and brings no token for too long.

        What ran there goes on elsewhere, as after any loss.
        """
        if self._call is not None and self.backend.is_silent(len(self._decoding)):
            _log.warning("backend has fallen silent", extra={"backend": self.backend.id})
            self._call.fail(grpc.StatusCode.UNAVAILABLE, "it brought no token for too long")

    def unlist(self) -> None:
        """The registry no longer lists it: nothing new, and close once it is idle."""
        self.listed = False
        if self.backend.health is Health.READY:
            self.backend.set_health(Health.DRAINING, "left the registry")
        self._leave_if_idle()

    def relist(self) -> bool:
        """The registry lists it again; false when it is too late and takes a new uplink."""
        if self._over:
            return False
        if not self.listed:
            self.listed = True
            draining = self.backend.health is Health.DRAINING and not self.backend.leaving
            if draining and self._call is not None:
                self.backend.set_health(Health.READY, "")
        return True

    async def run(self) -> None:
        """Keeps a session open until cancelled, or until unlisted and idle."""
        attempt = 0
        try:
            while self.listed:
                fault = await self._one_session()
                greeted = self.backend.health in (Health.READY, Health.DRAINING)
                attempt = 0 if greeted else attempt + 1
                self._session_over(fault)
                low, high = _BACKOFF_S
                delay = min(low * 2 ** min(attempt, 10), high)
                await asyncio.sleep(delay * (0.5 + self._jitter.random()))
        finally:
            self._over = True
            self._session_over(_lost("its session was closed"))
            await self.channel.close(_CLOSE_GRACE_S)

    async def _one_session(self) -> Fault:
        """Runs one session to its end and says why it ended."""
        try:
            token = await self._tokens.token()
        except Fault as no_token:
            return no_token
        limits = transport_limits(calling=True)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                connection = await connect(self._address, limits)
        except TimeoutError:
            return _lost("the backend could not be reached in time")
        except OSError as unreachable:
            return _lost(f"the backend cannot be reached: {unreachable.strerror or unreachable}")
        greeted: asyncio.Future[None] = self._loop.create_future()
        metadata = (("authorization", f"Bearer {token.value}"),)
        call = connection.call(
            SESSION_METHOD, metadata, lambda raw: self._greeting(call, greeted, raw)
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                renewal = tasks.create_task(self._renew(token.refresh_at))
                fault = await self._until_over(call, greeted)
                renewal.cancel()
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                self._tokens.was_refused(token)
            return fault
        except ExceptionGroup as group:
            return fault_of(group.exceptions[0])
        finally:
            self._call = None
            call.cancel()
            connection.close(Code.NO_ERROR, "the session is over")

    async def _until_over(self, call: ClientCall, greeted: asyncio.Future[None]) -> Fault:
        await asyncio.wait(
            (greeted, call.ended),
            timeout=_READY_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not greeted.done() and not call.ended.done():
            return _lost("the backend did not greet in time")
        error = await call.ended
        if error is None:
            return _lost("the backend closed the session")
        if error.code() is grpc.StatusCode.CANCELLED:
            return _lost("left the registry")  # it may be listed again by now
        return fault_from_rpc_error(error)

    def _greeting(self, call: ClientCall, greeted: asyncio.Future[None], raw: bytes) -> None:
        try:
            message = relay_pb2.RelaySessionResponse.FromString(raw)
        except DecodeError:
            call.fail(grpc.StatusCode.INTERNAL, _UNREADABLE)
            return
        greeted.set_result(None)
        self._starts = 0
        self._call = call
        call.on_message = self._message
        self.backend.greeted(message.ready)
        if message.ready.prefix_cache_events:
            self._prefixes.reports(self.backend.id)
        else:
            self._prefixes.forget(self.backend.id)
        _log.info("backend is ready", extra={"backend": self.backend.id})
        if self._outgoing:
            self._flush_soon.set()

    def _message(self, raw: bytes) -> None:
        try:
            message = relay_pb2.RelaySessionResponse.FromString(raw)
        except DecodeError:
            if self._call is not None:
                self._call.fail(grpc.StatusCode.INTERNAL, _UNREADABLE)
            return
        self._take(message)

    def _take(self, message: relay_pb2.RelaySessionResponse) -> None:
        """One message of the backend: usually one step, with a frame for each request."""
        receiver_of = self._receivers.get
        ended = 0
        if message.frames:
            self.backend.heard()
        for frame in message.frames:
            number = frame.stream
            receiver = receiver_of(number)
            if receiver is None:
                continue
            raw = frame.chunk
            try:
                if raw and not frame.last:
                    receiver.on_chunk(raw, False, frame.tokens)
                    continue
                if frame.last or frame.error:
                    del self._receivers[number]
                    self._decoding.discard(number)
                    ended += 1
                self._take_rare(frame, raw, receiver)
            except Exception as exc:  # noqa: BLE001 - the others on this session go on
                end_for_bug(receiver, exc)
        if message.HasField("prefix_cache"):
            self._take_events(message.prefix_cache)
        if message.HasField("go_away"):
            self.backend.leaves(message.go_away.reason)
        if ended:
            self.backend.ended(ended)
        # Made after the frames were: it knows already that these requests are over.
        if message.HasField("load"):
            self.backend.reported(message.load)
        if ended:
            self._leave_if_idle()

    def _take_rare(
        self, frame: relay_pb2.RelaySessionResponseFrame, raw: bytes, receiver: Receiver
    ) -> None:
        """A last chunk, an error, or a chunk that says nothing."""
        if not raw and frame.error:
            fault = _read_error(frame.error)
            self.backend.failed(self._sent_in.pop(frame.stream, UNKNOWN), fault)
            receiver.on_failure(fault)
            return
        generation = self._sent_in.pop(frame.stream, UNKNOWN) if frame.last else UNKNOWN
        receiver.on_chunk(raw, frame.last, frame.tokens)
        if frame.last:
            self.backend.answered(generation)

    def _take_events(self, events: session_pb2.PrefixCacheEvents) -> None:
        backend_id = self.backend.id
        if events.cleared:
            self._prefixes.cleared(backend_id)
        if events.stored:
            self._prefixes.stored(backend_id, events.stored)
        if events.removed:
            self._prefixes.removed(backend_id, events.removed)

    def _session_over(self, fault: Fault) -> None:
        receivers, self._receivers = self._receivers, {}
        if receivers or self.backend.health is Health.READY:
            _log.warning(
                "session to backend ended",
                extra={
                    "backend": self.backend.id,
                    "cause": fault.message,
                    "lost": len(receivers),
                },
            )
        unsent = self._outgoing.clear()
        sent_in, self._sent_in = self._sent_in, {}
        self._decoding.clear()
        self._prefixes.forget(self.backend.id)
        # First, so that nobody who hears of the rest is sent there.
        self.backend.disconnected(Health.LOST, fault.message)
        if receivers:
            # One loss, however many requests it takes with it.
            self.backend.failed(max(sent_in.values(), default=UNKNOWN), fault)
        for number, receiver in receivers.items():
            work = Work.NOT_DISPATCHED if number in unsent else Work.MAYBE_BILLED
            try:
                receiver.on_failure(_lost(f"backend {self.backend.id} was lost", work))
            except Exception as exc:  # noqa: BLE001 - the others are told too
                end_for_bug(receiver, exc)

    def _leave_if_idle(self) -> None:
        if not self.listed and not self._receivers and self._call is not None:
            self._call.cancel()

    def _flush(self) -> None:
        """Sends what was put on the session within one turn of the loop, in one message."""
        if self._call is None or self._call.ended.done():
            return  # the session is over: every request on it is told why
        frames = self._outgoing.take()
        if self._outgoing:
            self._flush_soon.set()
        renewal, self._renewal = self._renewal, ""
        if frames or renewal:
            message = relay_pb2.RelaySessionRequest(frames=frames, authorization=renewal)
            self._call.send(message.SerializeToString())

    async def _renew(self, refresh_at: float) -> None:
        """Keeps the session's credential alive in band."""
        while True:
            await asyncio.sleep(max(refresh_at - self._clock(), 0.0))
            try:
                token = await self._tokens.token()
            except Fault as fault:
                _log.warning("own token could not be renewed", extra={"cause": fault.message})
                refresh_at = self._clock() + _RENEW_RETRY_S
                continue
            refresh_at = token.refresh_at
            self._renewal = f"Bearer {token.value}"
            self._flush_soon.set()


def _read_error(raw: bytes) -> Fault:
    try:
        return fault_from_status(status_pb2.Status.FromString(raw))
    except DecodeError:
        return _lost("the backend sent an error that cannot be read")


def _lost(message: str, work: Work = Work.MAYBE_BILLED) -> Fault:
    return Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, message, work=work)
