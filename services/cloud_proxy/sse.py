"""Turns bytes of an event stream or of NDJSON into events, however the bytes were split.

Pure: no I/O, no JSON, no provider's conventions ("[DONE]" is the dialect's business). Data stays
bytes, so a split inside a UTF-8 character is harmless and nothing is decoded twice.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class StreamTooLarge(Exception):
    """A line or an event grew past its cap; the stream cannot be trusted any further."""


class SseEvent(NamedTuple):
    """One dispatched event: its name ("" for the default) and its data lines joined by LF."""

    name: str
    data: bytes


class LineSplitter:
    """Complete lines out of arbitrary pieces; LF, CRLF and CR end a line.

    `max_line` is in bytes and bounds what is held back while a line is unfinished.
    """

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        self._held: list[bytes] = []
        self._held_size = 0
        self._skip_lf = False
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The lines completed by `data`, without their ends. Raises StreamTooLarge."""
        if self._skip_lf and data:
            # The CR was already taken as a line's end; its LF may come with the next read.
            self._skip_lf = False
            if data[:1] == b"\n":
                data = data[1:]
        if not data:
            return []
        if b"\n" not in data and b"\r" not in data:
            self._hold(data)
            return []
        self._skip_lf = data.endswith(b"\r")
        if self._held:
            self._held.append(data)
            data = b"".join(self._held)
            self._held = []
            self._held_size = 0
        lines = data.splitlines()
        if not data.endswith((b"\n", b"\r")):
            self._hold(lines.pop())
        for line in lines:
            if len(line) > self._max_line:
                raise StreamTooLarge(f"a line is longer than {self._max_line} bytes")
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def close(self) -> bytes:
        """The unfinished last line, b"" when there is none."""
        rest = b"".join(self._held)
        self._held = []
        self._held_size = 0
        return rest.removeprefix(_BOM) if self._at_start else rest

    def _hold(self, data: bytes) -> None:
        self._held_size += len(data)
        if self._held_size > self._max_line:
            raise StreamTooLarge(f"a line is longer than {self._max_line} bytes")
        self._held.append(data)


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

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events completed by `data`, in order. Raises StreamTooLarge."""
        events: list[SseEvent] = []
        for line in self._lines.feed(data):
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        return events

    def close(self) -> list[SseEvent]:
        """What the end of the stream completes. Raises StreamTooLarge."""
        events: list[SseEvent] = []
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

    def _dispatch(self, events: list[SseEvent]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(SseEvent(self._name, data))
            self._data = []
            self._size = 0
        self._name = ""


class NdjsonReader:
    """One event per non-blank line, for dialects that stream bare JSON lines."""

    def __init__(self, *, max_line: int = 1 << 20) -> None:
        self._lines = LineSplitter(max_line)

    def feed(self, data: bytes) -> list[SseEvent]:
        """The lines completed by `data`. Raises StreamTooLarge."""
        return [SseEvent("", line) for line in self._lines.feed(data) if line.strip()]

    def close(self) -> list[SseEvent]:
        """An unfinished last line, if there is one."""
        rest = self._lines.close()
        return [SseEvent("", rest)] if rest.strip() else []
