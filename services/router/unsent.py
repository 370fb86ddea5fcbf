"""Frames that wait to be sent on a session, taken in messages of a bounded size. Sends nothing."""

from __future__ import annotations

from anabranch.v1.relay_pb2 import RelaySessionRequestFrame

_MESSAGE_BYTES = 1024 * 1024


class Unsent:
    """The frames of one session that have yet to leave."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: list[RelaySessionRequestFrame] = []

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame: RelaySessionRequestFrame) -> None:
        """One more, behind the others."""
        self._frames.append(frame)

    def take(self) -> list[RelaySessionRequestFrame]:
        """What leaves next: within what one message may hold, but one at least."""
        frames = self._frames
        size = count = 0
        while count < len(frames):
            size += len(frames[count].start)
            if count and size > _MESSAGE_BYTES:
                break
            count += 1
        self._frames = frames[count:]
        return frames[:count]

    def clear(self) -> frozenset[int]:
        """Drops them all; returns the numbers of the requests that thus never left."""
        frames, self._frames = self._frames, []
        return frozenset([f.stream for f in frames if f.WhichOneof("action") == "start"])
