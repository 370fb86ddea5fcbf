"""Reads server-sent events."""

from __future__ import annotations

from services.cloud_proxy.streams import StreamEvent, StreamTooLarge
from services.cloud_proxy.streams.lines import LineSplitter


class SseReader:
    """Reads text/event-stream as the WHATWG HTML standard, section 9.2, describes it.

    One deliberate difference: `close` also returns an event whose closing blank line is missing.
    Whether the stream ended properly is for the dialect's terminal marker to say.
    """

    def __init__(self, *, max_line: int = 1 << 20, max_event: int = 4 << 20) -> None:
        self._lines = LineSplitter(max_line)
        self._max_event = max_event
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The events completed by `data`, in order. Raises StreamTooLarge."""
        events: list[StreamEvent] = []
        for line in self._lines.feed(data):
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        return events

    def close(self) -> list[StreamEvent]:
        """What the end of the stream completes. Raises StreamTooLarge."""
        events: list[StreamEvent] = []
        rest = self._lines.close()
        if rest:
            self._field(rest)
        self._dispatch(events)
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            # Exactly one space is a separator; any further one belongs to the value.
            value = value.removeprefix(b" ")
            self._size += len(value) + 1
            if self._size > self._max_event:
                raise StreamTooLarge(f"an event is larger than {self._max_event} bytes")
            self._data.append(value)
        elif name == b"event":
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")
        # Comments (an empty name), id, retry and unknown fields carry nothing for us.

    def _dispatch(self, events: list[StreamEvent]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(StreamEvent(self._name, data))
            self._data = []
            self._size = 0
        self._name = ""
