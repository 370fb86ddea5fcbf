"""What the caller of a session has not got: frames that wait, messages that it has not confirmed.

Builds the session's messages, numbers and keeps them where the session is resumable, and repeats
them to a new connection. Knows no connection and no request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from anabranch.v1 import relay_pb2
from services.chassis.coalescing import Frame, coalesce
from services.chassis.session_frames import encoded

# Well below what a receiver accepts, since the last frame may go beyond it.
_MESSAGE_BYTES = 1024 * 1024
# Frames that wait before they are joined, some 250 bytes of memory each. Joining costs several
# times what passing on does: it is for callers that fall behind, not for a full window at times.
_JOIN_AT_LEAST = 512
_JOIN_PER_STREAM = 64


def _size(frame: Frame) -> int:
    return len(frame[1] or b"") + len(frame[2] or b"")


class Wake(Protocol):
    """Hears that there is something to send."""

    def set(self) -> None:
        """Called for every frame: must be cheap."""


class SessionOutput:
    """At most `limit` bytes and what one more step brings; then `overflowed` is true.

    `wake` is set when there is something to send: it belongs to whoever carries the session, or
    watches over it meanwhile, who also says in `behind` whether the caller has yet to take what was
    sent before: only then are frames joined. `on_last` hears of each stream's last frame.
    """

    __slots__ = (
        "_again",
        "_join_at",
        "_kept",
        "_kept_bytes",
        "_limit",
        "_pending",
        "_pending_bytes",
        "_room",
        "_streams",
        "behind",
        "numbered",
        "on_last",
        "overflowed",
        "sequence",
        "wake",
    )

    def __init__(
        self,
        limit: int,
        wake: Wake,
        streams: Callable[[], int],
        on_last: Callable[[int], None],
    ) -> None:
        self._limit = limit
        self._streams = streams
        self._pending: list[Frame] = []
        self._pending_bytes = 0
        self._join_at = _JOIN_AT_LEAST
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._room = limit
        self._again: deque[bytes] = deque()
        self.sequence = 0
        self.numbered = False
        self.overflowed = False
        self.behind = False
        self.wake = wake
        self.on_last = on_last

    @property
    def waits(self) -> bool:
        """Whether there is anything to send, again or for the first time."""
        return bool(self._pending or self._again)

    @property
    def unconfirmed(self) -> bool:
        """Whether the caller has not confirmed everything that was sent."""
        return bool(self._kept)

    @property
    def held(self) -> int:
        """Bytes held for the caller."""
        return self._pending_bytes + self._kept_bytes

    def add(self, frame: Frame, size: int) -> None:
        """Adds a frame to the next message."""
        pending = self._pending
        pending.append(frame)
        self._pending_bytes += size
        if frame[3]:
            self.on_last(frame[0])
        if self.behind:
            if len(pending) >= self._join_at:
                self._join_pending()
            self.wake.set()
        elif len(pending) == 1:
            # Who carries the session sends all that gathers, or is behind.
            self.wake.set()
        if self._pending_bytes > self._room:
            self.overflowed = True

    def again(self) -> bytes | None:
        """The next message that is to be repeated, as it was."""
        return self._again.popleft() if self._again else None

    def next_message(self, beside: relay_pb2.RelaySessionResponse | None) -> bytes:
        """What waits, within what one message may hold, and what is to be said beside it.

        The bytes are kept until confirmed where messages are numbered.
        """
        raw = encoded(self._batch())
        if self.numbered:
            beside = beside or relay_pb2.RelaySessionResponse()
            self.sequence = beside.sequence = self.sequence + 1
        if beside is not None:
            raw += beside.SerializeToString()  # parts of a message, in any order, are the message
        if self.numbered:
            self._kept.append((self.sequence, raw))
            self._keep(len(raw))
        return raw

    def confirm(self, sequence: int) -> None:
        """The caller has every message up to this one."""
        kept = self._kept
        freed = 0
        while kept and kept[0][0] <= sequence:
            freed += len(kept.popleft()[1])
        self._keep(-freed)

    def rewind(self, sequence: int) -> None:
        """A new connection begins after this message: later ones are repeated."""
        self.confirm(sequence)
        self._again = deque(raw for _, raw in self._kept)
        self.wake.set()

    def clear(self) -> None:
        """Nobody will ask for any of it."""
        self._pending, self._pending_bytes = [], 0
        self._kept.clear()
        self._again.clear()
        self._keep(-self._kept_bytes)

    def _keep(self, size: int) -> None:
        self._kept_bytes += size
        self._room = self._limit - self._kept_bytes

    def _join_pending(self) -> None:
        """The caller is behind by several steps: what waits for it is made compact."""
        self._pending = coalesce(self._pending)
        self._pending_bytes = sum(map(_size, self._pending))
        # Joining again pays only once as much has gathered as is there now.
        least = max(_JOIN_AT_LEAST, _JOIN_PER_STREAM * self._streams())
        self._join_at = max(least, 2 * len(self._pending))

    def _batch(self) -> list[Frame]:
        frames = self._pending
        if self._pending_bytes <= _MESSAGE_BYTES:
            self._pending, self._pending_bytes = [], 0
            self._join_at = max(_JOIN_AT_LEAST, _JOIN_PER_STREAM * self._streams())
            return frames
        size = count = 0
        while count < len(frames) and (count == 0 or size < _MESSAGE_BYTES):
            size += _size(frames[count])
            count += 1
        self._pending = frames[count:]
        self._pending_bytes -= size
        self.wake.set()
        return frames[:count]
