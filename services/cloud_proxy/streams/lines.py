"""Splits bytes into lines, for the framings that are made of lines."""

from __future__ import annotations

from services.cloud_proxy.streams import StreamTooLarge

_BOM = b"\xef\xbb\xbf"


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
