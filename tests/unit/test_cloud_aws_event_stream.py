"""AWS event streams: any split of the bytes gives the same events, and damage is noticed."""

from __future__ import annotations

import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from services.cloud_proxy.streams import StreamEvent, StreamGarbled, StreamTooLarge
from services.cloud_proxy.streams.aws_event_stream import AwsEventStreamReader
from tests.support.recordings import RECORDINGS, split
from tests.support.stream_faults import frame

STREAM = frame("event", "contentBlockDelta", b'{"a":1}') + frame("exception", "oops", b"{}")


def read(pieces: list[bytes], max_event: int = 1 << 20) -> list[StreamEvent]:
    reader = AwsEventStreamReader(max_event=max_event)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.close()


@given(cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split_gives_the_same_events(cuts):
    assert read(split(STREAM, cuts)) == [
        StreamEvent("contentBlockDelta", b'{"a":1}'),
        StreamEvent("oops", b"{}", failed=True),
    ]


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*/*.eventstream")), ids=lambda p: p.stem)
def test_recordings_hold_what_botocore_finds_in_them(path):
    data = path.read_bytes()
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    theirs = [
        (e.headers.get(":event-type") or e.headers.get(":exception-type"), e.payload)
        for e in buffer
    ]
    assert [(e.name, e.data) for e in read([data])] == theirs


def headed(headers: bytes, payload: bytes = b"{}") -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    body = prelude + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


def test_headers_of_every_type_are_passed_over():
    values = {
        0: b"", 1: b"", 2: b"\x07", 3: b"\x00\x07", 4: b"\x00" * 4, 5: b"\x00" * 8,
        6: b"\x00\x03abc", 8: b"\x00" * 8, 9: b"\x00" * 16,
    }  # fmt: skip
    headers = b"".join(b"\x01x" + bytes([kind]) + value for kind, value in values.items())
    headers += b"\x0b:event-type\x07\x00\x04stop"
    assert read([headed(headers)]) == [StreamEvent("stop", b"{}")]


@pytest.mark.parametrize(
    "headers",
    [
        b"\x01x\x0a\x00",  # a type that does not exist
        b"\x01x\x07\x00\x09short",  # longer than there is
        b"\xffx",  # a name beyond the headers
        b"\x01x\x04\x00",  # an integer that is cut
        b"\x01x\x07\x00\x01\xff",  # text that is none
    ],
)
def test_headers_that_cannot_be_read_are_noticed(headers):
    with pytest.raises(StreamGarbled):
        read([headed(headers)])


@given(where=st.integers(0, len(STREAM) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(where, bit):
    damaged = bytearray(STREAM)
    damaged[where] ^= 1 << bit
    with pytest.raises((StreamGarbled, StreamTooLarge)):
        read([bytes(damaged)])


@given(end=st.integers(1, len(STREAM) - 1))
def test_stream_that_ends_within_an_event_is_noticed(end):
    first = struct.unpack_from(">I", STREAM)[0]
    if end == first:
        assert len(read([STREAM[:end]])) == 1
        return
    with pytest.raises(StreamGarbled):
        read([STREAM[:end]])


def test_what_came_whole_before_the_damage_is_given_out():
    reader = AwsEventStreamReader(max_event=1 << 20)
    whole, damaged = frame("event", "a", b"{}"), bytearray(frame("event", "b", b"{}"))
    damaged[-1] ^= 1
    assert [e.name for e in reader.feed(whole + bytes(damaged))] == ["a"]
    with pytest.raises(StreamGarbled):
        reader.feed(whole)
    with pytest.raises(StreamGarbled):
        reader.close()


def test_event_that_is_too_large_is_refused_by_its_first_bytes():
    giant = frame("event", "contentBlockDelta", b"x" * 5000)
    reader = AwsEventStreamReader(max_event=4096)
    with pytest.raises(StreamTooLarge):
        reader.feed(giant[:12])


def test_event_with_an_impossible_length_is_noticed():
    prelude = struct.pack(">II", 4, 0)
    prelude += struct.pack(">I", zlib.crc32(prelude))
    with pytest.raises(StreamGarbled):
        read([prelude])
