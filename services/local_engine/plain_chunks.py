"""GenerateChunks of nothing but text and tokens as bytes, written without building messages. Pure.

Such are all chunks of an ordinary answer but its first and its last. Equal to what protobuf's own
serialisation gives, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.v1 import generation_pb2 as pb

_FIELDS = pb.GenerateChunk.DESCRIPTOR.fields_by_name
_FIRST = bytes((_FIELDS["first_token"].number << 3,))
_TEXT = bytes((_FIELDS["text"].number << 3 | 2,))
_TOKENS = bytes((_FIELDS["token_ids"].number << 3 | 2,))


def varint(number: int) -> bytes:
    """A number from 0 up, seven bits a byte."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _positions(count: int) -> tuple[bytes, ...]:
    return (b"", *(_FIRST + varint(position) for position in range(1, count)))


_POSITIONS = _positions(8192)
"""Of most answers; beyond them each is written out."""


def head(first_token: int) -> bytes:
    """The chunk's position, which stands before all else; the choice is the first one."""
    if first_token < len(_POSITIONS):
        return _POSITIONS[first_token]
    return _FIRST + varint(first_token)


def tail(text: bytes, token_ids: Sequence[int]) -> bytes:
    """What follows the position: text in UTF-8, and at least one token."""
    packed = b"".join(map(varint, token_ids))
    ids = _TOKENS + varint(len(packed)) + packed
    return _TEXT + varint(len(text)) + text + ids if text else ids
