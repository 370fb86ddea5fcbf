"""Reads JSON lines."""

from __future__ import annotations

from services.cloud_proxy.streams import StreamEvent
from services.cloud_proxy.streams.lines import LineSplitter


class NdjsonReader:
    """One event per non-blank line, for dialects that stream bare JSON lines."""

    def __init__(self, *, max_line: int = 1 << 20) -> None:
        self._lines = LineSplitter(max_line)

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The lines completed by `data`. Raises StreamTooLarge."""
        return [StreamEvent("", line) for line in self._lines.feed(data) if line.strip()]

    def close(self) -> list[StreamEvent]:
        """An unfinished last line, if there is one."""
        rest = self._lines.close()
        return [StreamEvent("", rest)] if rest.strip() else []
