"""HTTP/2 frames: bytes in, bytes out. Pure; knows no streams and no windows. RFC 9113, 4 and 6."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

FIRST_WINDOW = 65_535
WIDEST_WINDOW = 2**31 - 1
SMALLEST_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = 2**24 - 1

# What begins every header block: the table of the peer's decoder is given up. Whoever lowers
# HEADER_TABLE_SIZE must be told in the next block (RFC 7541, 4.2); said each time, it is never
# told too late, whatever order blocks leave in.
_NO_TABLE = b"\x20"

HEAD = struct.Struct(">HBBBI")
HEAD_BYTES = 9
MESSAGE_HEAD_BYTES = 5
_MESSAGE_HEAD = struct.Struct(">BI")
_DATA_HEAD = struct.Struct(">HBBBIBI")
_SETTING = struct.Struct(">HI")


class Code(IntEnum):
    """Why a stream or a connection was ended. RFC 9113, §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class StreamFault(Exception):
    """The peer broke the protocol in a way that ends one stream."""

    def __init__(self, stream: int, code: Code, why: str) -> None:
        super().__init__(why)
        self.stream = stream
        self.code = code
        self.why = why


Frame = tuple[int, int, int, bytes]
"""Type, flags, stream, payload."""


class FrameReader:
    """Cuts what arrives into frames, wherever the network split it."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[Frame]:
        """The frames that are whole by now. Raises ConnectionFault for one beyond 16 KiB."""
        if self._rest:
            received = self._rest + received
        frames: list[Frame] = []
        at, end = 0, len(received)
        unpack = HEAD.unpack_from
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream = unpack(received, at)
            size = high << 8 | low
            if size > SMALLEST_MAX_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            after = at + HEAD_BYTES + size
            if after > end:
                break
            frames.append((kind, flags, stream & 0x7FFFFFFF, received[at + HEAD_BYTES : after]))
            at = after
        self._rest = received[at:]
        return frames


def pack(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def message_head(size: int) -> bytes:
    """What stands before a gRPC message of `size` bytes in DATA."""
    return _MESSAGE_HEAD.pack(0, size)


def data_head(stream: int, size: int) -> bytes:
    """The head of a DATA frame with one whole gRPC message; `size` counts the message's own."""
    return _DATA_HEAD.pack(size >> 8, size & 0xFF, DATA, 0, stream, 0, size - MESSAGE_HEAD_BYTES)


def window_update(stream: int, size: int) -> bytes:
    """Lets the peer send so many bytes more."""
    return pack(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: Code) -> bytes:
    """Ends one stream at once."""
    return pack(RST_STREAM, 0, stream, int(code).to_bytes(4, "big"))


def go_away(last_stream: int, code: Code, why: str = "") -> bytes:
    """Streams above `last_stream` were not and will not be worked on."""
    return pack(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + why.encode()[:256])


def settings(values: dict[int, int]) -> bytes:
    """The settings of this end."""
    return pack(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def headers(stream: int, block: bytes, *, end_stream: bool) -> bytes:
    """A header block, in frames that every peer takes."""
    block = _NO_TABLE + block
    largest = SMALLEST_MAX_FRAME
    flags = END_STREAM if end_stream else 0
    if len(block) <= largest:
        return pack(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[at : at + largest] for at in range(0, len(block), largest)]
    framed = [pack(HEADERS, flags, stream, parts[0])]
    framed += [pack(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    framed.append(pack(CONTINUATION, END_HEADERS, stream, parts[-1]))
    return b"".join(framed)


def read_settings(payload: bytes) -> dict[int, int]:
    """The last value of each identifier. Raises ConnectionFault for what no setting may be."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS of odd length")
    found: dict[int, int] = {}
    for name, value in _SETTING.iter_unpack(payload):
        found[name] = value
        if name == INITIAL_WINDOW_SIZE and value > WIDEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "an initial window beyond 2^31-1")
        if name == MAX_FRAME_SIZE and not SMALLEST_MAX_FRAME <= value <= LARGEST_MAX_FRAME:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame size out of range")
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
    return found


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without padding. Raises ConnectionFault."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
