"""What a session has still to tell the service: starts, cancels, a credential, what it has got.

Where the session is resumable it numbers its messages, remembers which the service has not
confirmed, and takes back those that a lost connection swallowed. Sends nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from anabranch.inflight import Inflight
from anabranch.v1 import relay_pb2, session_pb2

# Most bytes of frames put into one message, below the 4 MiB that services accept.
BATCH_BYTES = 1 << 20
# Messages after which the service is told that they have come; each such notice costs it a read.
ACK_EVERY = 64
ACK_BYTES = 256 * 1024


class Outbox:
    """`closing` asks for the session's end in the next message, `renewed` for a new credential."""

    def __init__(self, streams: Mapping[int, Inflight]) -> None:
        self._streams = streams
        self._starts: list[int] = []
        self._cancels: list[int] = []
        self._unconfirmed: deque[tuple[int, Sequence[int], Sequence[int]]] = deque()
        self._sequence = 0
        self._numbered = False
        self._opening = False
        self._unacknowledged = 0
        self._unacknowledged_bytes = 0
        self._ack_bytes = ACK_BYTES
        self.heard = 0
        """The number of the service's last message that was taken."""
        self.ack_due = False
        self.renewed = ""
        self.closing = False

    @property
    def opened(self) -> bool:
        """Whether the service has been asked to keep the session."""
        return self._numbered and not self._opening

    @property
    def owes_ack(self) -> bool:
        """Whether anything came that is not acknowledged yet."""
        return self._unacknowledged > 0

    @property
    def pending(self) -> bool:
        """Whether anything about a request is unsent, or may not have arrived."""
        return bool(self._starts or self._cancels or self._unconfirmed)

    def start(self, number: int) -> None:
        """Starts the request of this stream."""
        self._starts.append(number)

    def cancel(self, number: int) -> None:
        """Cancels a request that was sent."""
        self._cancels.append(number)

    def open_resumable(self, buffer_bytes: int) -> None:
        """The first message asks that the session outlives its connection."""
        self._numbered = self._opening = True
        if buffer_bytes:
            self._ack_bytes = min(ACK_BYTES, buffer_bytes // 4)

    def got(self, sequence: int, size: int) -> bool:
        """A numbered message came. True when none was to be acknowledged before it."""
        self.heard = sequence
        self._unacknowledged += 1
        self._unacknowledged_bytes += size
        if self._unacknowledged >= ACK_EVERY or self._unacknowledged_bytes >= self._ack_bytes:
            self.ack_due = True
        return self._unacknowledged == 1

    def confirmed(self, sequence: int) -> None:
        """The service has every message up to this one."""
        while self._unconfirmed and self._unconfirmed[0][0] <= sequence:
            self._unconfirmed.popleft()

    def rewind(self, received: int) -> None:
        """The service got no message after this one: what they said is to be said again."""
        self.confirmed(received)
        lost = [number for _, starts, _ in self._unconfirmed for number in starts]
        again = [number for _, _, cancels in self._unconfirmed for number in cancels]
        self._unconfirmed.clear()
        self._sequence = received
        never = set(lost)
        # What was given up meanwhile and never arrived needs neither start nor cancel.
        self._cancels = [number for number in again + self._cancels if number not in never]
        back = [number for number in lost if number in self._streams]
        for number in back:
            inflight = self._streams[number]
            inflight.sent = False
            inflight.dispatched = inflight.attempts > 1
        self._starts = back + self._starts

    def next(self) -> relay_pb2.RelaySessionRequest | None:
        """Whatever waits to be sent, up to BATCH_BYTES and at least one frame."""
        if not (
            self._starts
            or self._cancels
            or self.renewed
            or self._opening
            or self.ack_due
            or self.closing
        ):
            return None
        message = relay_pb2.RelaySessionRequest(authorization=self.renewed)
        self.renewed = ""
        for number in self._cancels:
            message.frames.add(stream=number, cancel=session_pb2.SessionCancel())
        cancels, self._cancels = self._cancels, []
        starts = self._add_starts(message)
        if self._numbered:
            self._number(message, starts, cancels)
        elif not message.frames and not message.authorization:
            return None
        return message

    def _number(
        self,
        message: relay_pb2.RelaySessionRequest,
        starts: Sequence[int],
        cancels: Sequence[int],
    ) -> None:
        if self._opening:
            self._opening = False
            message.open.resumable = True
        if message.frames:
            self._sequence += 1
            message.sequence = self._sequence
            self._unconfirmed.append((self._sequence, starts, cancels))
        if self._unacknowledged:
            message.ack = self.heard
            self._unacknowledged = self._unacknowledged_bytes = 0
        self.ack_due = False
        message.close, self.closing = self.closing, False

    def _add_starts(self, message: relay_pb2.RelaySessionRequest) -> list[int]:
        size = taken = 0
        added: list[int] = []
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
            added.append(number)
        del self._starts[:taken]
        return added
