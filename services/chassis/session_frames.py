"""The frames of a session's message as bytes, written without building messages of them. Pure.

A frame of an engine's step is a number, a chunk that is bytes already and a count: as a
protobuf object it costs its relay three times what writing it down does, and a
relay writes one for every token. Anything out of the ordinary is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Iterable

from anabranch.v1 import relay_pb2
from services.chassis.coalescing import Frame

# Lengths and counts below this take one byte each, stream numbers below its square two.
_ONE_BYTE = 128
_TWO_BYTES = _ONE_BYTE**2
_MOST_AROUND = 8

_FRAME = relay_pb2.RelaySessionResponseFrame.DESCRIPTOR.fields_by_name
_FRAMES = relay_pb2.RelaySessionResponse.DESCRIPTOR.fields_by_name["frames"].number << 3 | 2
_STREAM = _FRAME["stream"].number << 3
_CHUNK = _FRAME["chunk"].number << 3 | 2
_TOKENS = _FRAME["tokens"].number << 3

# Tag and length of the frame, the stream's number, tag and length of the chunk, the chunk, tokens.
_SHORT = bytes((_FRAMES,)) + b"%c" + bytes((_STREAM,)) + b"%c" + bytes((_CHUNK,)) + b"%c%b"
_SHORT += bytes((_TOKENS,)) + b"%c"
_LONG = _SHORT.replace(bytes((_STREAM,)) + b"%c", bytes((_STREAM,)) + b"%c%c", 1)


def encoded(frames: Iterable[Frame]) -> bytes:
    """The frames as they stand in a serialised RelaySessionResponse, in their order."""
    parts: list[bytes] = []
    add = parts.append
    for frame in frames:
        number, chunk, error, last, tokens = frame
        size = _ONE_BYTE if error is not None or chunk is None else len(chunk)
        if last or size + _MOST_AROUND >= _ONE_BYTE or not 0 < tokens < _ONE_BYTE:
            add(_any(frame))
        elif number < _ONE_BYTE:
            add(_SHORT % (size + 6, number, size, chunk, tokens))
        elif number < _TWO_BYTES:
            low = number & 0x7F | 0x80
            add(_LONG % (size + 7, low, number >> 7, size, chunk, tokens))
        else:
            add(_any(frame))
    return b"".join(parts)


def _any(frame: Frame) -> bytes:
    number, chunk, error, last, tokens = frame
    message = relay_pb2.RelaySessionResponse()
    if error is None:
        message.frames.add(stream=number, chunk=chunk, last=last, tokens=tokens)
    else:
        message.frames.add(stream=number, error=error, last=True)
    raw: bytes = message.SerializeToString()
    return raw
