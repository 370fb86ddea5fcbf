"""What can befall a recorded stream on its way: cuts, garbage, lost ends, errors, repetitions.

Each fault makes other bytes of a recording's; whether an answer may still come out whole is for
the reader of them to say. Transport faults (timers, statuses, media types) are the simulator's.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Mapping

from services.cloud_proxy.dialects import Framing
from tests.support.recordings import Recording

LINE_CAP = 1 << 20

Fault = Callable[[Recording, random.Random], bytes]


def events_of(recording: Recording) -> list[bytes]:
    """The stream's events with their ends, so that joined they are the stream again."""
    data = recording.data
    if recording.framing is Framing.AWS_EVENT_STREAM:
        frames = []
        while data:
            (length,) = struct.unpack_from(">I", data)
            frames.append(data[:length])
            data = data[length:]
        return frames
    if recording.framing is Framing.NDJSON:
        return data.splitlines(keepends=True)
    end = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
    parts = data.split(end)
    return [part + end for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def frame(kind: str, name: str, payload: bytes) -> bytes:
    """A frame of an AWS event stream: `kind` is event or exception."""
    headers = b""
    for key, value in ((":message-type", kind), (f":{kind}-type", name)):
        headers += bytes([len(key)]) + key.encode() + b"\x07"
        headers += struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    body = prelude + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


_ERRORS: Mapping[str, bytes] = {
    "openai_chat": b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n',
    "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
    b'"message":"Overloaded"}}\n\n',
    "gemini": b'data: {"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}\n\n',
    "ollama": b'{"error":"the model runner has stopped"}\n',
    "bedrock_converse": frame("exception", "internalServerException", b'{"message":"failed"}'),
}


def cut_anywhere(recording: Recording, chance: random.Random) -> bytes:
    """The connection ends in the middle."""
    return recording.data[: chance.randrange(len(recording.data))]


def cut_between_events(recording: Recording, chance: random.Random) -> bytes:
    """The connection ends, and no event is cut."""
    events = events_of(recording)
    return b"".join(events[: chance.randrange(len(events))])


def end_lost(recording: Recording, chance: random.Random) -> bytes:
    """Nothing is missing but what says that nothing is missing."""
    return b"".join(events_of(recording)[:-1])


def garbage_between(recording: Recording, chance: random.Random) -> bytes:
    """Bytes that are no event stand among the events."""
    events = events_of(recording)
    where = chance.randrange(len(events))
    trash = chance.randbytes(40).replace(b"\n", b" ").replace(b"\r", b" ")
    start = b"data: " if recording.framing is Framing.SSE else b""
    return b"".join(events[:where]) + start + trash + b"\n\n" + b"".join(events[where:])


def error_between(recording: Recording, chance: random.Random) -> bytes:
    """The provider fails after it has begun."""
    events = events_of(recording)
    where = chance.randrange(len(events))
    error = _ERRORS[recording.route.profile.dialect]
    return b"".join(events[:where]) + error


def giant_event(recording: Recording, chance: random.Random) -> bytes:
    """One event is larger than the reader allows."""
    events = events_of(recording)
    where = chance.randrange(len(events))
    filler = b"x" * (LINE_CAP + 1)
    if recording.framing is Framing.AWS_EVENT_STREAM:
        giant = frame("event", "contentBlockDelta", filler)
    else:
        giant = (b"data: " if recording.framing is Framing.SSE else b"") + filler + b"\n\n"
    return b"".join(events[:where]) + giant + b"".join(events[where:])


def flipped_byte(recording: Recording, chance: random.Random) -> bytes:
    """One byte arrives as another. Only a framing with checksums can tell."""
    data = bytearray(recording.data)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def keepalives(recording: Recording, chance: random.Random) -> bytes:
    """Comments or blank lines stand among the events; they mean nothing."""
    if recording.framing is Framing.AWS_EVENT_STREAM:
        return recording.data
    mark = b": keep-alive\n\n" if recording.framing is Framing.SSE else b"\n"
    return b"".join(e + mark * chance.randrange(3) for e in events_of(recording))


FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        cut_anywhere,
        cut_between_events,
        end_lost,
        garbage_between,
        error_between,
        giant_event,
        keepalives,
    )
}
