"""The least of HTTP/2 that the benchmark's lean ends need: frames and messages, however split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.dataplane import http2

MESSAGES = st.lists(st.binary(max_size=400), max_size=8)


@given(MESSAGES, st.integers(1, 50))
def test_frames_come_back_whole_however_the_bytes_arrive(messages, step):
    wire = b"".join(http2.data(2 * n + 1, m) for n, m in enumerate(messages))
    buffer, found = bytearray(), []
    for at in range(0, len(wire), step):
        buffer += wire[at : at + step]
        found += list(http2.frames(buffer))
    assert not buffer
    assert [(kind, stream) for kind, _, stream, _ in found] == [
        (http2.DATA, 2 * n + 1) for n in range(len(messages))
    ]
    assert [payload[5:] for *_, payload in found] == messages


@given(MESSAGES, st.integers(1, 50))
def test_messages_are_counted_once_however_frames_split_them(messages, step):
    wire = b"".join(http2.data(1, m)[9:] for m in messages)
    counter = http2.Messages()
    counts = [counter.count(wire[at : at + step]) for at in range(0, len(wire), step)]
    assert sum(counts) == len(messages)


def test_data_alone_counts_against_the_window_and_without_its_head():
    assert http2.weight(http2.data(1, b"abc")) == 8
    assert http2.weight(http2.frame(http2.HEADERS, 0, 1, b"abc")) == 0


def test_a_long_header_value_has_a_length_of_several_bytes():
    # RFC 7541, 5.1: a prefix of 7 bits, then 7 bits a byte, the least first.
    assert http2.literal(b"a", b"x" * 1337)[:5] == b"\x00\x01a\x7f\xba"
    assert http2.literal(b"a", b"x" * 127)[3:5] == b"\x7f\x00"
    assert http2.literal(b"a", b"x" * 126)[3] == 126
