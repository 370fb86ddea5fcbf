"""The least of HTTP/2 and gRPC that two ends of a benchmark need. Pure: bytes in, bytes out.

Not for anything else: headers are written without compression and never read, which HTTP/2 allows
to an end that has announced a header table of size 0 and needs to know nothing from them. What is
sent is within the windows that the peers are known to open. RFC 9113, RFC 7541, gRPC over HTTP/2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4

FIRST_WINDOW = 65_535
WIDEST_WINDOW = 2**31 - 1

_HEAD = struct.Struct(">HBBBI")
_MESSAGE = struct.Struct(">BI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def data(stream: int, message: bytes, flags: int = 0) -> bytes:
    """One gRPC message in a DATA frame."""
    size = len(message)
    whole = size + 5
    head = _HEAD.pack(whole >> 8, whole & 0xFF, DATA, flags, stream)
    return head + _MESSAGE.pack(0, size) + message


def weight(frame: bytes) -> int:
    """What a frame takes of the peer's window: the payload of DATA, and nothing else."""
    return len(frame) - 9 if frame[3] == DATA else 0


def window(stream: int, size: int) -> bytes:
    """Lets the peer send so many bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def opening() -> bytes:
    """Settings with wide windows, for this end's first bytes (after a client's preface)."""
    settings = ((0x1, 0), (0x3, 10_000), (0x4, WIDEST_WINDOW))
    body = b"".join(struct.pack(">HI", name, value) for name, value in settings)
    return frame(SETTINGS, 0, 0, body) + window(0, WIDEST_WINDOW - FIRST_WINDOW)


def literal(name: bytes, value: bytes) -> bytes:
    """A header field as a literal that is not indexed."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    head = bytearray((127,))
    while size >= 128:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + text


def frames(buffer: bytearray) -> Iterator[tuple[int, int, int, bytes]]:
    """Takes whole frames off the buffer: kind, flags, stream, payload."""
    at, end = 0, len(buffer)
    while end - at >= 9:
        high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
        after = at + 9 + (high << 8 | low)
        if after > end:
            break
        yield kind, flags, stream, bytes(buffer[at + 9 : after])
        at = after
    del buffer[:at]


class Messages:
    """Counts the gRPC messages in the DATA frames of one stream, wherever frames split them."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def count(self, payload: bytes) -> int:
        """Messages that end in this payload."""
        if self._rest:
            payload = self._rest + payload
        at, end, found = 0, len(payload), 0
        while end - at >= 5:
            after = at + 5 + _MESSAGE.unpack_from(payload, at)[1]
            if after > end:
                break
            at = after
            found += 1
        self._rest = payload[at:]
        return found
