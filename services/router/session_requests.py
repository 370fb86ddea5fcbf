"""The requests on the session to one backend: sent with a number, heard of by it.

Chunks pass as bytes. One message of the backend is handled in one go, so the callers' sessions
each send one message for it. It opens and ends no session: that is uplink.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from anabranch.v1.generation_pb2 import PiiKind
from services.chassis.errors import Fault, Work, fault_from_status
from services.chassis.principal import Principal
from services.router import refusals
from services.router.core.breaker import UNKNOWN
from services.router.core.prefix import PrefixIndex
from services.router.core.values import Health
from services.router.known_backend import KnownBackend
from services.router.receivers import NOBODY, Receiver, end_for_bug
from services.router.unsent import Unsent


class SessionRequests:
    """Who waits for what from one backend.

    `send_soon` is called when there is something in `outgoing`, `on_idle` when requests have ended
    and none may be left, `on_refused` when the backend does not take the router's own credential.
    """

    __slots__ = (
        *("_backend", "_decoding", "_next", "_on_idle", "_on_refused", "_prefixes", "_receivers"),
        *("_send_soon", "_sent_in", "_starts", "outgoing"),
    )

    def __init__(
        self,
        backend: KnownBackend,
        prefixes: PrefixIndex,
        send_soon: Callable[[], None],
        on_idle: Callable[[], None],
        on_refused: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._prefixes = prefixes
        self._send_soon = send_soon
        self._on_idle = on_idle
        self._on_refused = on_refused
        self._receivers: dict[int, Receiver] = {}
        # The breaker's word for when each was sent, and who of them has had its first token.
        self._sent_in: dict[int, int] = {}
        self._decoding: set[int] = set()
        self._next = 1
        self._starts = 0
        self.outgoing = Unsent()

    def __len__(self) -> int:
        return len(self._receivers)

    @property
    def decoding(self) -> int:
        """How many have had their first token."""
        return len(self._decoding)

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
        backend = self._backend
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
        self.outgoing.append(frame)
        self._send_soon()
        return number

    def cancel(self, number: int) -> None:
        """Asks the backend to stop a request; its last frame still comes."""
        if number in self._receivers:
            generation = self._sent_in.pop(number, UNKNOWN)
            self._backend.abandoned(generation)
            frame = relay_pb2.RelaySessionRequestFrame(stream=number)
            frame.cancel.SetInParent()
            self.outgoing.append(frame)
            self._send_soon()

    def answers(self, number: int, seconds: float) -> None:
        """The first chunk of a request came, so long after it was sent."""
        generation = self._sent_in.get(number)
        if generation is not None:
            self._decoding.add(number)
            self._backend.answers(generation, seconds)

    def disown(self, number: int) -> None:
        """Nobody listens to a request any more; its end is still waited for."""
        if number in self._receivers:
            self._receivers[number] = NOBODY

    def hand_over(self, number: int, receiver: Receiver) -> None:
        """Somebody else listens to a request from now on."""
        if number in self._receivers:
            self._receivers[number] = receiver

    def begin(self, ready: session_pb2.SessionReady) -> None:
        """A session has begun; what was asked for meanwhile goes out on it."""
        backend = self._backend
        self._starts = 0
        backend.greeted(ready)
        if ready.prefix_cache_events:
            self._prefixes.reports(backend.id)
        else:
            self._prefixes.forget(backend.id)
        if self.outgoing:
            self._send_soon()

    def take(self, raw: bytes) -> None:
        """One message of the backend: usually one step, with a frame for each request.

        Raises DecodeError when it is none.
        """
        message = relay_pb2.RelaySessionResponse.FromString(raw)
        receiver_of = self._receivers.get
        ended = 0
        if message.frames:
            self._backend.heard()
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
        if message.HasField("models"):
            self._backend.serves(message.models.models)
        if message.HasField("go_away"):
            self._backend.leaves(message.go_away.reason)
        if ended:
            self._backend.ended(ended)
        # Made after the frames were: it knows already that these requests are over.
        if message.HasField("load"):
            self._backend.reported(message.load)
        if ended:
            self._on_idle()

    def _take_rare(
        self, frame: relay_pb2.RelaySessionResponseFrame, raw: bytes, receiver: Receiver
    ) -> None:
        """A last chunk, an error, or a chunk that says nothing."""
        if not raw and frame.error:
            fault = _read_error(frame.error)
            self._backend.failed(self._sent_in.pop(frame.stream, UNKNOWN), fault)
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                self._on_refused()
            receiver.on_failure(fault)
            return
        generation = self._sent_in.pop(frame.stream, UNKNOWN) if frame.last else UNKNOWN
        receiver.on_chunk(raw, frame.last, frame.tokens)
        if frame.last:
            self._backend.answered(generation)

    def _take_events(self, events: session_pb2.PrefixCacheEvents) -> None:
        backend_id = self._backend.id
        if events.cleared:
            self._prefixes.cleared(backend_id)
        if events.stored:
            self._prefixes.stored(backend_id, events.stored)
        if events.removed:
            self._prefixes.removed(backend_id, events.removed)

    def lose(self, fault: Fault) -> None:
        """The session is over, and every request on it: each hears of it as of its own loss."""
        backend = self._backend
        receivers, self._receivers = self._receivers, {}
        unsent = self.outgoing.clear()
        sent_in, self._sent_in = self._sent_in, {}
        self._decoding.clear()
        self._prefixes.forget(backend.id)
        # First, so that nobody who hears of the rest is sent there.
        backend.disconnected(Health.LOST, fault.message)
        if receivers:
            # One loss, however many requests it takes with it.
            backend.failed(max(sent_in.values(), default=UNKNOWN), fault)
        for number, receiver in receivers.items():
            work = Work.NOT_DISPATCHED if number in unsent else Work.MAYBE_BILLED
            try:
                receiver.on_failure(refusals.backend_lost(f"backend {backend.id} was lost", work))
            except Exception as exc:  # noqa: BLE001 - the others are told too
                end_for_bug(receiver, exc)


def _read_error(raw: bytes) -> Fault:
    try:
        return fault_from_status(status_pb2.Status.FromString(raw))
    except DecodeError:
        return refusals.backend_lost("the backend sent an error that cannot be read")
