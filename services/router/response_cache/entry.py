"""A kept answer: as a value, as bytes for a store, and as the chunk that a caller gets. Pure.

Kept is one chunk, the joined ones of the stream. What differs between callers is put behind it:
parts of a message, in any order, are the message.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.chassis.coalescing import coalesce_chunks
from services.router.receipt import write_seconds
from services.router.response_cache.key import KEY_BYTES

_FORMAT = 1
_HEAD = struct.Struct(f">B{KEY_BYTES}sdI")
"""Format, key, when it was stored, output tokens."""
_CHECK = struct.Struct(">I")
"""Checksum of head and chunk, between the two."""
_BEFORE_CHUNK = _HEAD.size + _CHECK.size
_CLOCKS_DIFFER_S = 60.0


class Entry(NamedTuple):
    """An answer. `chunk` is a serialised GenerateChunk without a request id, its receipt only
    saying where the answer came from; `stored_at` is in seconds of the epoch."""

    stored_at: float
    tokens: int
    chunk: bytes

    @property
    def size(self) -> int:
        """Bytes of the chunk."""
        return len(self.chunk)


def entry_of(
    chunks: Sequence[bytes], last: pb.GenerateChunk, tokens: int, stored_at: float
) -> Entry | None:
    """What is kept of a stream; None for one that cannot be joined.

    `last` ends it and is not among `chunks`; `tokens` are those of all.
    """
    kept = pb.GenerateChunk()
    kept.CopyFrom(last)
    if last.HasField("receipt"):
        kept.receipt.CopyFrom(_origin(last.receipt))
    joined = coalesce_chunks([*chunks, kept.SerializeToString()])
    if len(joined) != 1:
        return None
    kept.ParseFromString(joined[0])
    kept.ClearField("request_id")
    return Entry(stored_at, tokens, kept.SerializeToString())


def time_left(entry: Entry, ttl: float, now: float) -> float:
    """Seconds that an answer may still be used; none for one from the future of another clock."""
    age = now - entry.stored_at
    return ttl - age if age > -_CLOCKS_DIFFER_S else 0.0


def pack(key: bytes, entry: Entry) -> bytes:
    """The entry for a store that keeps bytes."""
    head = _HEAD.pack(_FORMAT, key, entry.stored_at, entry.tokens)
    return head + _CHECK.pack(zlib.crc32(entry.chunk, zlib.crc32(head))) + entry.chunk


def packed_size(longest: int) -> int:
    """Bytes of the largest entry of `longest` bytes."""
    return _BEFORE_CHUNK + longest


def unpack(key: bytes, raw: bytes) -> Entry:
    """Reads it back. Raises ValueError for anything but the whole entry of this very key.

    So whatever a store or a connection mixes up, nobody gets another one's answer.
    """
    if len(raw) < _BEFORE_CHUNK:
        raise ValueError("shorter than an entry")
    head, chunk = raw[: _HEAD.size], raw[_BEFORE_CHUNK:]
    form, stored_under, stored_at, tokens = _HEAD.unpack(head)
    if form != _FORMAT or stored_under != key:
        raise ValueError("an entry of another format or key")
    if _CHECK.unpack_from(raw, _HEAD.size) != (zlib.crc32(chunk, zlib.crc32(head)),):
        raise ValueError("an entry that was changed or cut")
    return Entry(stored_at, tokens, chunk)


def own_part(
    *,
    request_id: str = "",
    receipt: pb.RouteReceipt | None = None,
    source: pb.CacheSource = pb.CACHE_SOURCE_UNSPECIFIED,
    ttft: float | None = None,
    resolved_model: str = "",
) -> bytes:
    """What one caller's chunk says besides the answer, to be put behind it; `ttft` is in seconds.

    `receipt` is that of the request that the answer was generated for: of it, only where the
    answer came from is said.
    """
    own = pb.GenerateChunk(request_id=request_id)
    if receipt is not None:
        own.receipt.CopyFrom(_origin(receipt))
    if ttft is not None:
        write_seconds(own.receipt.ttft, ttft)
    if source:
        own.receipt.cache = source
    if resolved_model:
        own.receipt.resolved_model = resolved_model
    return own.SerializeToString()


def _origin(receipt: pb.RouteReceipt) -> pb.RouteReceipt:
    return pb.RouteReceipt(
        tier=receipt.tier, backend_id=receipt.backend_id, served_model=receipt.served_model
    )
