"""What one connection sends: DATA within the peer's windows, everything else at once.

While the windows are open a message goes straight to the transport, which gathers a turn's
writes itself; otherwise it waits at its stream, and streams take turns, a frame each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from services.chassis.http2 import frames as h2
from services.chassis.http2.frames import Code, ConnectionFault

if TYPE_CHECKING:
    from services.chassis.http2.stream import Stream

# A peer that makes us answer and does not read the answers.
_MOST_UNREAD = 1024 * 1024
_HIGH_WATER = 64 * 1024
# Whatever larger frames the peer would take: streams take turns by frames.
_LARGEST_SENT = 64 * 1024
# A peer that opens its window byte by byte (CVE-2019-9511) earns nothing by what it is sent.
_WORTH = 1024
_CLOSE_PATIENCE_S = 2.0


class Outgoing:
    """The sending half of a connection."""

    def __init__(self, on_data: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.stream_window = h2.FIRST_WINDOW
        self._on_data = on_data
        self._window = h2.FIRST_WINDOW
        self._largest = h2.SMALLEST_MAX_FRAME
        self._blocked: dict[int, Stream] = {}
        self._paused = False

    @property
    def window(self) -> int:
        """Bytes of data that the connection may be sent now."""
        return self._window

    def connected(self, transport: asyncio.Transport) -> None:
        """From here on something can be sent."""
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.transport = transport

    def message(self, stream: Stream, message: bytes) -> None:
        """Sends a message, or keeps it at its stream until windows and transport take it."""
        size = len(message) + h2.MESSAGE_HEAD_BYTES
        if (
            size <= self._window
            and size <= stream.window
            and size <= self._largest
            and not self._paused
            and not stream.pending
            and self.transport is not None
        ):
            self._window -= size
            stream.window -= size
            self._on_data()
            self.transport.write(h2.data_head(stream.number, size) + message)
            return
        stream.pending += h2.message_head(len(message)) + message
        self._blocked[stream.number] = stream
        self.pump()

    def raw(self, frames: bytes) -> None:
        """Frames that no window bounds."""
        if self.transport is not None:
            self.transport.write(frames)

    def check_read(self) -> None:
        """Raises ConnectionFault when the peer reads nothing of what it makes us answer.

        Data waits at its streams by then, so this is statuses, acknowledgements, resets.
        """
        if not self._paused or self.transport is None:
            return
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "answers are not read")

    def pump(self) -> None:
        """Sends what waits, a frame of each stream in turn, as far as the windows go."""
        moved = True
        while moved and self._blocked and self._window > 0 and not self._paused:
            moved = False
            for stream in tuple(self._blocked.values()):
                room = min(self._window, stream.window, self._largest)
                if room <= 0 or self._paused or self.transport is None:
                    continue
                part = bytes(stream.pending[:room])
                del stream.pending[:room]
                self._window -= len(part)
                stream.window -= len(part)
                moved = True
                if len(part) >= _WORTH or not stream.pending:
                    self._on_data()
                self.transport.write(h2.pack(h2.DATA, 0, stream.number, part))
                if not stream.pending:
                    del self._blocked[stream.number]
                    stream.flushed()

    def pause(self, paused: bool) -> None:
        """The transport has enough for now, or takes more."""
        self._paused = paused
        if not paused:
            self.pump()

    def widen(self, size: int) -> None:
        """The peer lets the connection send more. Raises ConnectionFault."""
        if size == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a window that is widened by nothing")
        self._window += size
        if self._window > h2.WIDEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        self.pump()

    def settings(self, found: Mapping[int, int], streams: Iterable[Stream]) -> None:
        """The peer's settings, as far as they bound what is sent. Raises ConnectionFault."""
        self._largest = min(found.get(h2.MAX_FRAME_SIZE, self._largest), _LARGEST_SENT)
        value = found.get(h2.INITIAL_WINDOW_SIZE)
        if value is not None:
            change, self.stream_window = value - self.stream_window, value
            for stream in streams:
                stream.window += change
                if stream.window > h2.WIDEST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        self.pump()

    def forget(self, number: int) -> None:
        """A stream is over."""
        self._blocked.pop(number, None)

    def close(self, last_words: bytes, loop: asyncio.AbstractEventLoop, *, linger: bool) -> None:
        """Sends the last frames and closes, patiently for a moment.

        `linger`: the peer is still sending. A socket that is closed with something unread resets
        the connection, and the peer might never hear the last words.
        """
        transport, self.transport = self.transport, None
        self._blocked.clear()
        if transport is not None:
            transport.write(last_words)
            if linger and transport.can_write_eof():
                transport.write_eof()  # what still arrives is dropped until the peer closes
            else:
                transport.close()
            loop.call_later(_CLOSE_PATIENCE_S, transport.abort)

    def abort(self) -> None:
        """Closes without a word; also once the transport is gone."""
        transport, self.transport = self.transport, None
        self._blocked.clear()
        if transport is not None:
            transport.abort()
