"""The stream readers: any split of the bytes gives the same events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cloud_proxy.streams import StreamEvent, StreamTooLarge
from services.cloud_proxy.streams.ndjson import NdjsonReader
from services.cloud_proxy.streams.sse import SseReader

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


def read(pieces: list[bytes], **caps: int) -> list[StreamEvent]:
    reader = SseReader(**caps)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.close()


texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    events=st.lists(st.tuples(st.sampled_from(["", "ping", "größe"]), st.lists(texts, min_size=1))),
    end=ENDS,
    space=st.booleans(),
    comments=st.booleans(),
    bom=st.booleans(),
    cuts=st.lists(st.integers(0, 2000)),
)
def test_any_split_any_line_end_gives_the_events_written(events, end, space, comments, bom, cuts):
    lines = []
    for name, data in events:
        if comments:
            lines.append(b": keep-alive")
        if name:
            lines.append(b"event:" + (b" " if space else b"") + name.encode())
        # Without the separating space, a value's own leading space would be taken for it.
        lines += [b"data: " + d.encode() if space else b"data:" + d.lstrip().encode() for d in data]
        lines.append(b"")
    stream = (b"\xef\xbb\xbf" if bom else b"") + b"".join(line + end for line in lines)
    expected = [
        StreamEvent(name, "\n".join(d if space else d.lstrip() for d in data).encode())
        for name, data in events
    ]
    assert read(split(stream, cuts)) == expected
    assert read([bytes([b]) for b in stream]) == expected


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400)))
def test_arbitrary_bytes_never_depend_on_the_split(data, cuts):
    assert read(split(data, cuts)) == read([data])


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400)))
def test_ndjson_never_depends_on_the_split(data, cuts):
    def lines(pieces: list[bytes]) -> list[StreamEvent]:
        reader = NdjsonReader()
        return [e for piece in pieces for e in reader.feed(piece)] + reader.close()

    assert lines(split(data, cuts)) == lines([data])


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),
        (b"data\n\n", [("", b"")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b"event: x\n\ndata: a\n\n", [("", b"a")]),
        (b"event: x\ndata: a\nid: 7\nretry: 1\nwhat: y\n\n", [("x", b"a")]),
        (b": c\n\n:\n\n\n\n", []),
        (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
        (b"data: a\r\n\r\n", [("", b"a")]),
        (b"data: tail without its blank line", [("", b"tail without its blank line")]),
    ],
)
def test_fields(stream, expected):
    assert read([stream]) == [StreamEvent(*e) for e in expected]
    assert read([bytes([b]) for b in stream]) == [StreamEvent(*e) for e in expected]


def test_event_is_given_as_soon_as_its_blank_line_is_there():
    reader = SseReader()
    assert reader.feed(b"data: a\r\n\r") == [StreamEvent("", b"a")]
    assert reader.feed(b"\ndata: b\r\n\r\n") == [StreamEvent("", b"b")]


@pytest.mark.parametrize("pieces", [[b"data: " + b"x" * 200], [b"x"] * 200, [b"x" * 200 + b"\n"]])
def test_endless_line_is_refused(pieces):
    with pytest.raises(StreamTooLarge):
        read(pieces, max_line=100)


def test_endless_event_of_short_lines_is_refused():
    with pytest.raises(StreamTooLarge):
        read([b"data: xxxxxxxxxx\n"] * 100, max_line=100, max_event=500)


def test_many_events_in_one_piece_are_not_one_long_line():
    assert len(read([b"data: xxxxxxxxxx\n\n" * 100], max_line=20, max_event=20)) == 100
