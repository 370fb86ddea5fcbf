"""The pure parts of our HTTP/2: what is read comes out the same however the bytes arrive, and
nothing that arrives makes it hold or compute more than its limits."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from contextlib import suppress

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.abuse import Patience
from services.chassis.http2.frames import Code, ConnectionFault, FrameReader
from services.chassis.http2.headers import HeaderReader, HeadersTooLarge
from services.chassis.http2.messages import (
    Budget,
    MessageReader,
    MessageTooLarge,
    MessageUnreadable,
)

FEW = settings(max_examples=25, deadline=None)
FRAMES = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary()),
    max_size=6,
)
STEPS = st.integers(1, 40)
LIMIT = 1000


def cut(wire: bytes, step: int) -> list[bytes]:
    return [wire[at : at + step] for at in range(0, len(wire), step)]


# Frames


@FEW
@given(FRAMES, STEPS)
def test_frames_come_out_whole_however_the_bytes_arrive(frames, step):
    wire = b"".join(h2.pack(*frame) for frame in frames)
    reader = FrameReader()
    assert [frame for part in cut(wire, step) for frame in reader.feed(part)] == frames


def test_the_reserved_bit_of_a_stream_number_is_ignored():
    assert FrameReader().feed(h2.pack(h2.DATA, 0, 0x80000001, b"x")) == [(h2.DATA, 0, 1, b"x")]


def test_a_frame_beyond_the_limit_is_refused_by_its_head_alone():
    assert len(FrameReader().feed(h2.pack(h2.DATA, 0, 1, bytes(16384)))) == 1
    with pytest.raises(ConnectionFault) as refused:
        FrameReader().feed(h2.pack(h2.DATA, 0, 1, bytes(16385))[:9])
    assert refused.value.code is Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    ("payload", "expected"),
    [(b"\x00abc", b"abc"), (b"\x02abc", b"a"), (b"\x03abc", b""), (b"\x00", b"")],
)
def test_padding_is_removed(payload, expected):
    assert h2.unpadded(h2.PADDED, payload) == expected
    assert h2.unpadded(0, payload) == payload


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x04abc", b"\xff"])
def test_padding_beyond_the_payload_is_refused(payload):
    with pytest.raises(ConnectionFault) as refused:
        h2.unpadded(h2.PADDED, payload)
    assert refused.value.code is Code.PROTOCOL_ERROR


def test_of_settings_the_last_value_counts_and_unknown_ones_are_kept():
    twice = h2.settings({4: 1, 99: 7})[9:] + h2.settings({4: 2})[9:]
    assert h2.read_settings(twice) == {4: 2, 99: 7}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"12345", Code.FRAME_SIZE_ERROR),
        (h2.settings({h2.INITIAL_WINDOW_SIZE: 2**31})[9:], Code.FLOW_CONTROL_ERROR),
        (h2.settings({h2.MAX_FRAME_SIZE: 16383})[9:], Code.PROTOCOL_ERROR),
        (h2.settings({h2.MAX_FRAME_SIZE: 2**24})[9:], Code.PROTOCOL_ERROR),
        (h2.settings({h2.ENABLE_PUSH: 2})[9:], Code.PROTOCOL_ERROR),
        # Also when a good value follows.
        (h2.settings({4: 2**31})[9:] + h2.settings({4: 1})[9:], Code.FLOW_CONTROL_ERROR),
    ],
)
def test_settings_that_none_may_be_are_refused(payload, code):
    with pytest.raises(ConnectionFault) as refused:
        h2.read_settings(payload)
    assert refused.value.code is code


@pytest.mark.parametrize("size", [0, 16_383, 16_384, 40_000])
def test_a_header_block_is_continued_in_frames_that_every_peer_takes(size):
    frames = FrameReader().feed(h2.headers(3, bytes(size), end_stream=True))
    assert [kind for kind, *_ in frames] == [h2.HEADERS] + [h2.CONTINUATION] * (len(frames) - 1)
    assert [bool(flags & h2.END_HEADERS) for _, flags, *_ in frames] == [
        at == len(frames) - 1 for at in range(len(frames))
    ]
    assert frames[0][1] & h2.END_STREAM
    assert b"".join(payload for *_, payload in frames)[1:] == bytes(size)


def test_what_is_sent_can_be_read_by_one_who_wants_no_table():
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0  # as after its SETTINGS_HEADER_TABLE_SIZE of 0
    [(*_, payload)] = FrameReader().feed(
        h2.headers(1, headers.block([("a", "b"), ("c-bin", b"\x00\xff")]), end_stream=False)
    )
    assert list(decoder.decode(payload)) == [("a", "b"), ("c-bin", "AP8")]


# Messages


@FEW
@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=6), STEPS)
def test_messages_come_out_whole_however_frames_cut_them(messages, step):
    wire = b""
    for body, compressed in messages:
        sent = gzip.compress(body, mtime=0) if compressed else body
        wire += bytes([compressed]) + len(sent).to_bytes(4, "big") + sent
    reader = MessageReader(LIMIT, "gzip")
    found = [message for part in cut(wire, step) for message in reader.feed(part)]
    assert found == [body for body, _ in messages]
    assert reader.held == 0


def test_what_is_held_is_counted():
    reader = MessageReader(LIMIT)
    assert reader.feed(h2.message_head(10) + b"abc") == []
    assert reader.held == 8
    assert reader.feed(b"defghij" + b"\x00\x00") == [b"abcdefghij"]
    assert reader.held == 2


def test_a_message_beyond_the_limit_is_refused_when_it_is_announced():
    assert MessageReader(LIMIT).feed(h2.message_head(LIMIT)) == []
    with pytest.raises(MessageTooLarge):
        MessageReader(LIMIT).feed(h2.message_head(LIMIT + 1))


def compressed(body: bytes, flag: int = 1) -> bytes:
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


def test_a_gzip_bomb_is_expanded_no_further_than_the_limit():
    bomb = compressed(gzip.compress(bytes(16 << 20), mtime=0))
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            MessageReader(1 << 20, "gzip").feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_message_up_to_the_limit_is_read(size, encoding):
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    reader = MessageReader(LIMIT, encoding)
    assert reader.feed(compressed(pack(bytes(size)))) == [bytes(size)]


@pytest.mark.parametrize(
    ("wire", "encoding"),
    [
        (compressed(gzip.compress(b"abc", mtime=0)[:-1]), "gzip"),
        (compressed(gzip.compress(b"abc", mtime=0)[:5]), "gzip"),
        (compressed(gzip.compress(b"abc", mtime=0) + b"more"), "gzip"),
        (compressed(b"no gzip at all"), "gzip"),
        (compressed(b""), "gzip"),
        (compressed(gzip.compress(b"abc", mtime=0)), "deflate"),
        (compressed(gzip.compress(b"abc", mtime=0)), "identity"),
        (compressed(gzip.compress(b"abc", mtime=0)), "br"),
        (compressed(gzip.compress(b"abc", mtime=0), flag=2), "gzip"),
    ],
)
def test_what_cannot_be_expanded_is_unreadable(wire, encoding):
    with pytest.raises(MessageUnreadable):
        MessageReader(LIMIT, encoding).feed(wire)


def test_a_budget_gives_no_more_than_it_has_and_takes_back():
    budget = Budget(10)
    assert budget.take(8)
    assert not budget.take(3)
    assert budget.take(-8)
    assert budget.taken == 0


# Headers


def read(block: bytes, limit: int = 8192) -> list[tuple[str, str]]:
    return HeaderReader(limit).read(block)


@FEW
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b-c", "d.e"]), st.text("xyz -/", max_size=300))),
    st.booleans(),
)
def test_headers_of_an_encoder_with_a_table_are_read(fields, huffman):
    reader, encoder = HeaderReader(10**6), hpack.Encoder()
    for _ in range(2):  # the second refers to the first
        assert reader.read(encoder.encode(fields, huffman=huffman)) == fields


@FEW
@given(st.binary(max_size=200))
def test_a_block_of_garbage_is_headers_or_ends_the_connection(block):
    # Nothing else is raised, whatever arrives.
    with suppress(ConnectionFault, HeadersTooLarge):
        assert isinstance(read(block), list)


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (b"\x80", Code.COMPRESSION_ERROR),  # index 0
        (b"\xfe", Code.COMPRESSION_ERROR),  # an index beyond the table
        (b"\x00\x05ab", Code.COMPRESSION_ERROR),  # cut short
        (b"\x00\x7f" + b"\xff" * 9000, Code.COMPRESSION_ERROR),  # an integer without an end
        (b"\x00\x81\x00\x00", Code.COMPRESSION_ERROR),  # Huffman padding that is none
        (b"\x82\x20", Code.COMPRESSION_ERROR),  # a table size after a field
        (b"\x3f\xe2\x1f", Code.COMPRESSION_ERROR),  # a table of 4,097 bytes
        (b"\x20" * 3 + b"\x82", Code.COMPRESSION_ERROR),
        (b"\x3f\x81\x1f" * 16000, Code.COMPRESSION_ERROR),  # only resizes the table
        (b"\x7f" * 9, Code.COMPRESSION_ERROR),
        (b"\x82" * 2000, Code.ENHANCE_YOUR_CALM),
    ],
)
def test_malformed_blocks_and_bombs_end_the_connection(block, code):
    with pytest.raises(ConnectionFault) as ended:
        read(block)
    assert ended.value.code is code


def test_an_hpack_bomb_ends_the_connection():
    # A large entry in the table, then a byte for each of many copies of it.
    bomb = b"\x40\x01a" + b"\x7f\x81\x1e" + b"x" * 4000 + b"\xbe" * 10_000
    with pytest.raises(ConnectionFault) as ended:
        read(bomb)
    assert ended.value.code is Code.ENHANCE_YOUR_CALM


def test_two_table_sizes_may_begin_a_block():
    assert read(b"\x20\x3f\xe1\x1f\x83") == [(":method", "POST")]


def test_headers_somewhat_too_large_are_refused_and_the_table_stays_right():
    reader, encoder = HeaderReader(200), hpack.Encoder()
    with pytest.raises(HeadersTooLarge):
        reader.read(encoder.encode([("a", "x" * 100), ("b", "y" * 100)]))
    assert reader.read(encoder.encode([("a", "x" * 100)])) == [("a", "x" * 100)]


GOOD = [(":method", "POST"), (":scheme", "http"), (":path", "/a/B"), ("te", "trailers")]


@pytest.mark.parametrize(
    "more",
    [
        [("Upper", "1")],
        [("", "1")],
        [("sp ace", "1")],
        [("a", "line\nbreak")],
        [("a", "nul\0")],
        [(":path", "/late")],
        [("connection", "close")],
        [("transfer-encoding", "chunked")],
        [("upgrade", "h2c")],
    ],
)
def test_malformed_fields_are_no_request(more):
    assert headers.are_well_formed(GOOD)
    assert not headers.are_well_formed(GOOD + more)


@pytest.mark.parametrize("name", [":status", ":unknown", ":method"])
def test_pseudo_fields_are_those_of_a_request_and_come_once(name):
    assert not headers.are_well_formed([*GOOD[:3], (name, "1")])


@pytest.mark.parametrize(
    ("spelled", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("1500m", 1.5),
        ("250000u", 0.25),
        ("99999999n", 0.099999999),
        ("0m", 0.0),
        *((bad, None) for bad in ("", "1", "S", "1s", "-1S", "1.5S", "123456789S", "1S ", "٣S")),
    ],
)
def test_timeouts_are_read(spelled, seconds):
    assert headers.timeout(spelled) == (None if seconds is None else pytest.approx(seconds))


@FEW
@given(st.text())
def test_messages_survive_percent_encoding(text):
    spelled = headers.spelled_message(text)
    assert all(" " <= character <= "~" for character in spelled)
    expected = text.encode("utf-8", "replace").decode()
    assert headers.read_message(spelled) == expected


def test_a_message_that_is_no_text_is_read_as_far_as_it_goes():
    assert headers.read_message("50%25 %C3%A9 %FF %zz") == "50% é \ufffd %zz"
    assert headers.spelled_message("\ud800") == "?"


@FEW
@given(st.binary(max_size=100))
def test_binary_metadata_survives(value):
    fields = read(headers.block([("x-bin", value), ("y", "plain")]))
    assert headers.metadata(fields) == (("x-bin", value), ("y", "plain"))


def test_binary_metadata_may_be_padded_and_joined():
    assert headers.metadata([("x-bin", "YQ==, YmM,ZGU")]) == (
        ("x-bin", b"a"),
        ("x-bin", b"bc"),
        ("x-bin", b"de"),
    )


@pytest.mark.parametrize("value", ["*", "YQ=Q", "A", "é", "," * 8000])
def test_what_is_no_base64_is_refused(value):
    with pytest.raises(ValueError, match="is not base64"):
        headers.metadata([("x-bin", value)])


@pytest.mark.parametrize("field", [("A", "1"), ("a b", "1"), ("a", "ä"), ("a", "1\r\nb: 2")])
def test_metadata_that_a_peer_would_refuse_is_not_sent(field):
    with pytest.raises(ValueError, match="is no"):
        headers.block([field])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", True),
        ("application/grpc-web", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_grpc_is_known_by_its_content_type(kind, expected):
    assert headers.is_grpc(kind) is expected


# Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_patience_ends_with_a_flood_and_comes_back_with_time():
    clock = Clock()
    patience = Patience(clock, 4.0)
    borne = 0
    while patience.bears():
        borne += 1
    assert borne == 2000
    clock.now += 1.0
    assert all(patience.bears() for _ in range(400))
    assert not all(patience.bears() for _ in range(200))


def test_who_is_sent_data_may_answer_it():
    patience = Patience(Clock(), 4.0)
    for _ in range(5000):
        assert patience.bears(2.0)
        patience.useful()


def test_pings_at_the_agreed_pace_are_borne_and_the_third_early_one_is_not():
    clock = Clock()
    patience = Patience(clock, 4.0)
    for _ in range(10):
        assert patience.bears_ping()
        clock.now += 4.0
    clock.now -= 3.0
    assert [patience.bears_ping() for _ in range(3)] == [True, True, False]


def test_pings_beside_data_are_borne():
    patience = Patience(Clock(), 4.0)
    for _ in range(10):
        assert patience.bears_ping()
        patience.useful()


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 2.5, 99_999.0, 100_000.0, 1e9, -1.0])
def test_a_timeout_is_written_as_it_is_read_and_never_longer(seconds: float):
    spelled = headers.spelled_timeout(seconds)
    read = headers.timeout(spelled)
    assert len(spelled) <= 9
    assert read is not None
    assert max(seconds, 0.0) - 1.0 < read <= max(seconds, 0.0) or read == 10**8 - 1
