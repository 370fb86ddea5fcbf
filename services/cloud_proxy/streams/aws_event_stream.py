"""Reads AWS event streams (application/vnd.amazon.eventstream), as Bedrock sends them.

A message is a prelude (total length, length of the headers, CRC-32 of both), headers, a payload and
a CRC-32 of all before it, all numbers big-endian. Source: the event stream encoding in the
specification of Amazon's Smithy.
"""

from __future__ import annotations

import struct
import zlib

from services.cloud_proxy.streams import StreamEvent, StreamGarbled, StreamTooLarge

_PRELUDE = struct.Struct(">III")
_CHECKSUM = struct.Struct(">I")
_LEAST = _PRELUDE.size + _CHECKSUM.size
# By the type of a header's value: true, false, byte, short, integer, long, timestamp, UUID.
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES, _TEXT = 6, 7


class AwsEventStreamReader:
    """Reads one response. `max_event` is in bytes, of a whole message."""

    def __init__(self, *, max_event: int) -> None:
        self._max_event = max_event
        self._held = bytearray()
        self._damage: StreamGarbled | StreamTooLarge | None = None

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The messages completed by `data`. Raises StreamTooLarge and StreamGarbled, but not
        before the messages that came whole have been given out."""
        self._held += data
        events: list[StreamEvent] = []
        try:
            if self._damage is None:
                self._read(events)
        except (StreamGarbled, StreamTooLarge) as damage:
            self._damage = damage
        if self._damage is not None and not events:
            raise self._damage
        return events

    def _read(self, events: list[StreamEvent]) -> None:
        held = self._held
        start = 0
        while len(held) - start >= _PRELUDE.size:
            total, _, checksum = _PRELUDE.unpack_from(held, start)
            # Before anything is believed of it, let alone waited for.
            if zlib.crc32(held[start : start + 8]) != checksum:
                raise StreamGarbled("the prelude of an event has a wrong checksum")
            if total > self._max_event:
                raise StreamTooLarge(f"an event is larger than {self._max_event} bytes")
            if total < _LEAST:
                raise StreamGarbled("an event has an impossible length")
            if len(held) - start < total:
                break
            events.append(_message(bytes(held[start : start + total])))
            start += total
        del held[:start]

    def close(self) -> list[StreamEvent]:
        """Nothing: a message that is damaged or not complete raises."""
        if self._damage is not None:
            raise self._damage
        if self._held:
            raise StreamGarbled("the stream ended within an event")
        return []


def _message(raw: bytes) -> StreamEvent:
    (checksum,) = _CHECKSUM.unpack_from(raw, len(raw) - _CHECKSUM.size)
    if zlib.crc32(raw[: -_CHECKSUM.size]) != checksum:
        raise StreamGarbled("an event has a wrong checksum")
    _, length, _ = _PRELUDE.unpack_from(raw)
    body = _PRELUDE.size + length
    if body > len(raw) - _CHECKSUM.size:
        raise StreamGarbled("the headers of an event are longer than the event")
    headers = _headers(raw[_PRELUDE.size : body])
    kind = headers.get(":message-type", "event")
    if kind == "event":
        return StreamEvent(headers.get(":event-type", ""), raw[body : -_CHECKSUM.size])
    name = headers.get(":exception-type") or headers.get(":error-code", "")
    return StreamEvent(name, raw[body : -_CHECKSUM.size], failed=True)


def _headers(raw: bytes) -> dict[str, str]:
    """The headers that hold text; the others are passed over."""
    found = {}
    at = 0
    try:
        while at < len(raw):
            length = raw[at]
            name = raw[at + 1 : at + 1 + length]
            at += 1 + length
            kind = raw[at]
            at += 1
            if kind in _FIXED:
                at += _FIXED[kind]
                continue
            if kind not in (_BYTES, _TEXT):
                raise StreamGarbled("a header of an event has a type that does not exist")
            (size,) = struct.unpack_from(">H", raw, at)
            at += 2
            if kind == _TEXT:
                found[name.decode()] = raw[at : at + size].decode()
            at += size
    except (IndexError, struct.error, UnicodeDecodeError):
        raise StreamGarbled("the headers of an event cannot be read") from None
    if at != len(raw):
        raise StreamGarbled("the headers of an event cannot be read")
    return found
