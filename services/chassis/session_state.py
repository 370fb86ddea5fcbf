"""What a session is apart from the connection that carries it: its requests and its output.

Takes the caller's frames and builds the messages to it. Where the session is resumable this
outlives a connection. Reading, writing and the credential's check are model_session.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from services.chassis.authn import Verifier
from services.chassis.errors import Fault, Violation, invalid, to_status
from services.chassis.model_handler import ChangesModels, HoldsPrefixes, ModelHandler
from services.chassis.model_streams import ActiveRequest, ActiveRequests
from services.chassis.prefix_log import PrefixReader
from services.chassis.principal import Principal, denied
from services.chassis.session_output import SessionOutput, Wake

_NO_MASK: frozenset[int] = frozenset()


def protocol_fault(message: str) -> Fault:
    """FAILED_PRECONDITION for messages that no caller should send; it ends the session."""
    return Fault(errors_pb2.ERROR_REASON_SESSION_PROTOCOL, message)


class Carrier(Protocol):
    """The connection that carries a session."""

    def displace(self) -> None:
        """Another connection carries it from now on; this one touches it no more."""


class _Stream:
    """The outlet of one request of a session."""

    __slots__ = ("_number", "_on_first", "_output", "_waits")

    def __init__(self, output: SessionOutput, number: int, on_first: Callable[[], None]) -> None:
        self._output = output
        self._number = number
        self._on_first = on_first
        self._waits = True

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self._waits and tokens:
            self._waits = False
            self._on_first()
        self._output.add((self._number, raw, None, last, tokens), len(raw))

    def fail(self, fault: Fault) -> None:
        raw = to_status(fault).SerializeToString()
        self._output.add((self._number, None, raw, True, 0), len(raw))


class SessionState:
    """One session of one caller. `principal` is renewed by whoever verified a newer credential."""

    def __init__(
        self,
        handler: ModelHandler,
        requests: ActiveRequests,
        principal: Principal,
        verifier: Verifier,
        wake: Wake,
    ) -> None:
        self._handler = handler
        self._requests = requests
        self._verifier = verifier
        self.principal = principal
        self.output = SessionOutput(
            requests.limits.session_buffer_bytes, wake, self.running, self._on_last
        )
        self.carrier: Carrier | None = None
        self._streams: dict[int, ActiveRequest] = {}
        self._highest = 0
        self._starts = 0
        self._received = 0
        self._received_told = 0
        self._go_away: session_pb2.GoAway | None = None
        self.leaving = False
        self.closed = False
        self.load_due = True
        self.spoke = False
        self._prefixes = _reader(handler, principal)
        self._models = handler if isinstance(handler, ChangesModels) else None
        self._models_told = 0 if self._models is None else self._models.models_version

    @property
    def tells_prefixes(self) -> bool:
        """Whether the caller hears what the backend's prefix cache holds."""
        return self._prefixes is not None

    @property
    def prefixes_wait(self) -> bool:
        """Whether there is news of the prefix cache."""
        return self._prefixes is not None and self._prefixes.waits

    @property
    def models_changed(self) -> bool:
        """Whether other models are served than the caller was told of."""
        return self._models is not None and self._models.models_version != self._models_told

    @property
    def resumable(self) -> bool:
        """Whether it outlives its connection."""
        return self.output.numbered

    @property
    def idle(self) -> bool:
        """Whether every request has ended and every frame has been sent."""
        return not self._streams and not self.output.waits and self._go_away is None

    @property
    def received(self) -> int:
        """The number of the caller's last message with frames."""
        return self._received

    def running(self) -> int:
        """How many requests run."""
        return len(self._streams)

    def carried_by(self, carrier: Carrier, wake: Wake) -> None:
        """A connection carries it from now on, and any other no more."""
        before, self.carrier = self.carrier, carrier
        self.output.wake = wake
        if before is not None:
            before.displace()

    def go_away(self, time_left: float, reason: str) -> None:
        """Tells the caller to leave; running streams go on."""
        if self.leaving:
            return
        notice = session_pb2.GoAway(reason=reason)
        notice.time_left.FromMilliseconds(int(time_left * 1000))
        self._go_away = notice
        self.leaving = True
        self.output.wake.set()

    def close(self) -> None:
        """Ends it: what runs is cancelled and what waits forgotten. Idempotent."""
        self.closed = True
        for request in tuple(self._streams.values()):
            request.abandon()
        self._streams.clear()
        self.output.clear()
        self.output.wake.set()

    # From the caller

    def take(self, message: relay_pb2.RelaySessionRequest) -> None:
        """Does what the message says. Raises Fault SESSION_PROTOCOL."""
        if self.resumable:
            if message.ack:
                self._confirmed(message.ack)
            if message.close:
                self.close()
            if self.closed or not self._is_new(message):
                return
        for frame in message.frames:
            self._take(frame)

    def resume_after(self, sequence: int) -> None:
        """The caller goes on after this message. Raises Fault SESSION_PROTOCOL."""
        self._check_sent(sequence)
        self.output.rewind(sequence)
        self._received_told = self._received

    def _confirmed(self, sequence: int) -> None:
        self._check_sent(sequence)
        self.output.confirm(sequence)
        if self.leaving:
            self.output.wake.set()

    def _check_sent(self, sequence: int) -> None:
        if sequence > self.output.sequence:
            raise protocol_fault(
                f"message {sequence} is acknowledged, but only {self.output.sequence} were sent"
            )

    def _is_new(self, message: relay_pb2.RelaySessionRequest) -> bool:
        """Whether its frames have not been taken yet."""
        if not message.frames or 0 < message.sequence <= self._received:
            return False
        if message.sequence != self._received + 1:
            raise protocol_fault(
                f"message {message.sequence} came after {self._received}: in a resumable session "
                "every message with frames has the next number"
            )
        self._received = message.sequence
        return True

    def _take(self, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        number = frame.stream
        action = frame.WhichOneof("action")
        if number == 0 or action is None:
            raise protocol_fault("every frame names a stream, from 1 up, and an action")
        if action == "cancel":
            running = self._streams.get(number)
            if running is not None:
                running.cancel()
            elif number > self._highest:
                raise protocol_fault(f"stream {number} is cancelled but was never started")
            return
        if number in self._streams:
            raise protocol_fault(f"stream {number} is started but still running")
        self._highest = max(self._highest, number)
        self._starts += 1
        self._start(number, frame)

    def _start(self, number: int, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        stream = _Stream(self.output, number, self._on_first_token)
        try:
            self._verifier.check_live(self.principal)
            caller = self._caller(frame)
            mask = self._mask(frame)
        except Fault as fault:
            stream.fail(fault)
            return
        if self.leaving:
            stream.fail(
                Fault(
                    errors_pb2.ERROR_REASON_DRAINING,
                    "this session is closing; open another",
                    retry_after=0.0,
                )
            )
            return
        request = self._requests.open(
            frame.start,
            stream,
            caller,
            traceparent=frame.traceparent,
            mask=mask,
        )
        if not request.ended:
            self._streams[number] = request

    def _caller(self, frame: relay_pb2.RelaySessionRequestFrame) -> Principal:
        """The identity that the request is accounted to."""
        principal = self.principal
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
                relayed_by=principal.client_id,
            )
        if not principal.has("generate"):
            raise denied(frozenset({"generate"}))
        return principal

    def _mask(self, frame: relay_pb2.RelaySessionRequestFrame) -> frozenset[int]:
        """What must be masked in the request: for relays to say, since they know the policy."""
        kinds = frame.mask
        if not kinds:
            return _NO_MASK
        if not self.principal.has("relay"):
            raise denied(frozenset({"relay"}))
        return frozenset(kinds)

    # To the caller

    def next_message(self) -> bytes | None:
        """The next message to send, if there is any."""
        output = self.output
        repeated = output.again()
        if repeated is not None:
            output.wake.set()
            return repeated
        load = self._handler.load() if self.load_due else None
        self.load_due = False
        prefixes = None if self._prefixes is None else self._prefixes.next()
        beside_them = load is not None or prefixes is not None or self._go_away is not None
        beside_them = beside_them or self.models_changed
        if not output.waits and not beside_them:
            return None
        self.spoke = True
        beside: relay_pb2.RelaySessionResponse | None = None
        if beside_them or self._received != self._received_told:
            beside = self._beside(load, prefixes)
        return output.next_message(beside)

    def _beside(
        self,
        load: session_pb2.LoadReport | None,
        prefixes: session_pb2.PrefixCacheEvents | None,
    ) -> relay_pb2.RelaySessionResponse:
        """What a message says apart from its frames."""
        message = relay_pb2.RelaySessionResponse()
        if prefixes is not None:
            message.prefix_cache.CopyFrom(prefixes)
            if self.prefixes_wait:
                self.output.wake.set()  # more than one message takes
        if self._models is not None and self.models_changed:
            self._models_told = self._models.models_version
            message.models.CopyFrom(self._models.served_models())
        if load is not None:
            load.starts_seen = self._starts
            message.load.CopyFrom(load)
        if self._go_away is not None:
            message.go_away.CopyFrom(self._go_away)
            self._go_away = None
            self.output.wake.set()
        if self._received != self._received_told:
            self._received_told = message.ack = self._received
        return message

    def _on_last(self, number: int) -> None:
        self._streams.pop(number, None)
        # A slot came free: whoever waits for one hears of it with the very same message.
        self.load_due = True

    def _on_first_token(self) -> None:
        # A relay that predicted when it would come learns in the same message how things stand.
        self.load_due = True


def _reader(handler: ModelHandler, principal: Principal) -> PrefixReader | None:
    """Only for relays: what is held says something of the prompts that others have sent."""
    if not principal.has("relay") or not isinstance(handler, HoldsPrefixes):
        return None
    log = handler.prefix_log()
    return None if log is None else PrefixReader(log)
