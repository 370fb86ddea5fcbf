"""Frames written by hand are those that protobuf would have written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import relay_pb2
from services.chassis.session_frames import encoded

numbers = st.one_of(st.integers(1, 2**63), st.sampled_from([1, 127, 128, 129, 16383, 16384, 2**32]))
sizes = st.one_of(st.integers(0, 300), st.sampled_from([118, 119, 120, 121, 122, 127, 128]))
chunks = st.tuples(
    numbers,
    sizes.map(lambda size: b"\x12%" * (size // 2) + b"x" * (size % 2)),
    st.none(),
    st.booleans(),
    st.one_of(st.integers(0, 200), st.sampled_from([0, 127, 128, 2**31 - 1])),
)
errors = st.tuples(numbers, st.none(), st.binary(max_size=200), st.just(True), st.just(0))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(chunks, errors), max_size=20))
def test_whatever_is_written_is_read_as_it_was(frames):
    message = relay_pb2.RelaySessionResponse.FromString(encoded(frames))
    read = []
    for frame in message.frames:
        kind = frame.WhichOneof("event")
        chunk = frame.chunk if kind == "chunk" else None
        error = frame.error if kind == "error" else None
        read.append((frame.stream, chunk, error, frame.last, frame.tokens))
    assert read == frames
    assert message.SerializeToString() == encoded(frames)
