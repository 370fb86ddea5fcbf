"""Turns the bytes of a streamed response into events, however the bytes were split.

One reader a framing: server-sent events, JSON lines and AWS event streams. Pure: no I/O, no JSON,
no provider's conventions ("[DONE]" is the dialect's business). Data stays bytes, so a split inside
a UTF-8 character is harmless and nothing is decoded twice.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StreamTooLarge(Exception):
    """A line or an event grew past its cap; the stream cannot be trusted any further."""


class StreamGarbled(Exception):
    """The framing itself is broken: a checksum or a length that cannot be."""


class StreamEvent(NamedTuple):
    """One event: its name ("" for the default), its data, and whether the framing itself marks it
    as a failure (an exception frame of an AWS event stream)."""

    name: str
    data: bytes
    failed: bool = False


class StreamReader(Protocol):
    """Reads one response. Both methods raise StreamTooLarge and StreamGarbled."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The events completed by `data`, in order."""

    def close(self) -> list[StreamEvent]:
        """What the end of the stream completes."""
