"""gRPC messages in the DATA of one stream: a byte of flags, four of length, the message.

Bounded before anything is kept: a length beyond the limit is refused when it is announced, and a
compressed message is expanded no further than the limit. Knows no frames.
"""

from __future__ import annotations

import struct
import zlib

HEAD = struct.Struct(">BI")
HEAD_BYTES = 5

ENCODINGS = ("identity", "deflate", "gzip")
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}


class MessageTooLarge(Exception):
    """A message of more bytes than are accepted; `size` is what it announced or expanded to."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes, more than the {limit} that are accepted")


class NoRoom(Exception):
    """The server holds too many bytes of messages that are unfinished or unread."""


class MessageUnreadable(Exception):
    """What arrived is no gRPC message, or compressed in a way that was not announced."""


class Budget:
    """Bytes of messages that all connections of a server may hold for handlers together:
    those that are not whole yet, and those that nobody has read yet.

    Small ones are free: they cost no more than their stream's window. Without it, whoever can
    connect could have each of many streams announce a large message and send most of it.
    """

    FREE = 64 * 1024

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    def take(self, size: int) -> bool:
        """Takes, or with a negative size gives back; false when there is too little left."""
        if size > self._limit - self.taken:
            return False
        self.taken += size
        return True


class MessageReader:
    """Cuts the payloads of one stream into messages."""

    __slots__ = ("_encoding", "_limit", "_rest", "_want", "held")

    def __init__(self, limit: int, encoding: str = "identity") -> None:
        self._limit = limit
        self._encoding = encoding
        self._rest = bytearray()
        self._want = 0
        self.held = 0  # bytes of a message that is not whole yet

    def feed(self, payload: bytes) -> list[bytes]:
        """The messages that are whole by now. Raises MessageTooLarge and MessageUnreadable."""
        if self._rest:
            self._rest += payload
            self.held = len(self._rest)
            if self.held < self._want:
                return []
            payload = bytes(self._rest)
            self._rest.clear()
        whole: list[bytes] = []
        at, end = 0, len(payload)
        self._want = HEAD_BYTES
        while end - at >= HEAD_BYTES:
            compressed, size = HEAD.unpack_from(payload, at)
            if size > self._limit:
                raise MessageTooLarge(size, self._limit)
            after = at + HEAD_BYTES + size
            if after > end:
                self._want = HEAD_BYTES + size
                break
            message = payload[at + HEAD_BYTES : after]
            whole.append(self._expanded(message, compressed) if compressed else message)
            at = after
        self.held = end - at
        if at < end:
            self._rest += payload[at:]
        return whole

    def _expanded(self, message: bytes, compressed: int) -> bytes:
        bits = _WINDOW_BITS.get(self._encoding)
        if compressed != 1 or bits is None:
            raise MessageUnreadable("a compressed message without a known grpc-encoding")
        inflater = zlib.decompressobj(bits)
        try:
            expanded = inflater.decompress(message, self._limit + 1)
        except zlib.error as exc:
            raise MessageUnreadable("a compressed message that cannot be expanded") from exc
        if len(expanded) > self._limit:
            raise MessageTooLarge(len(expanded), self._limit)
        if not inflater.eof:
            raise MessageUnreadable("a compressed message that is cut off")
        if inflater.unused_data:
            raise MessageUnreadable("a compressed message with more behind it")
        return expanded
