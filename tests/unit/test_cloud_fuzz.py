"""Readers and codecs under bytes that nobody meant: they end in an answer or in a ProviderFailure.

Here for a bounded number of examples, the same each time; `make fuzz` goes on for longer, and
elsewhere. Streams are mutations of the recordings, so that they come far into the codecs.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import Fault
from services.cloud_proxy.answer import ProviderFailure
from services.cloud_proxy.dialect_table import DIALECTS, reader_for
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.streams import StreamGarbled, StreamTooLarge
from tests.support.recordings import Recording, all_recordings, hear, split
from tests.support.stream_faults import events_of, frame

RECORDINGS = all_recordings()
BY_DIALECT = {
    dialect: [r for r in RECORDINGS if r.route.profile.dialect == dialect] for dialect in DIALECTS
}
# Many small examples: what matters is their number, and that of every dialect.
FUZZED = settings(suppress_health_check=list(HealthCheck))
each_dialect = pytest.mark.parametrize("dialect", [d for d in DIALECTS if BY_DIALECT[d]])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(["stop", "STOP", "tool_use", "error", "text", "thinking", "length", ""])
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@FUZZED
@given(
    framing=st.sampled_from(Framing),
    pieces=st.lists(st.binary(max_size=200) | st.sampled_from([b"\r", b"\n", b"data:", b"\n\n"])),
)
def test_no_bytes_break_a_reader(framing, pieces):
    reader = reader_for(framing, max_line=256, max_event=512)
    with contextlib.suppress(StreamTooLarge, StreamGarbled):
        for piece in pieces:
            for event in reader.feed(piece):
                assert len(event.data) <= 512 + 1
        reader.close()


@st.composite
def mangled(draw: st.DrawFn, recording: Recording) -> bytes:
    """The recording's stream with some of its events lost, repeated, swapped or changed inside."""
    events = list(events_of(recording))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(events) - 1))
        kind = draw(st.sampled_from(["lose", "repeat", "swap", "change", "bytes"]))
        if kind == "lose":
            del events[at]
            if not events:
                return b""
        elif kind == "repeat":
            events.insert(at, events[at])
        elif kind == "swap":
            other = draw(st.integers(0, len(events) - 1))
            events[at], events[other] = events[other], events[at]
        elif kind == "change":
            events[at] = changed(draw, recording.framing, events[at])
        else:
            events[at] = events[at][: draw(st.integers(0, len(events[at])))] + draw(
                st.binary(max_size=8)
            )
    return b"".join(events)


def changed(draw: st.DrawFn, framing: Framing, event: bytes) -> bytes:
    """The event with another value somewhere in its JSON, if it holds any."""
    start = event.find(b"{")
    end = event.rfind(b"}") + 1
    if start < 0 or not end:
        return event
    try:
        document = json.loads(event[start:end])
    except ValueError:
        return event
    places = list(_places(document))
    if places:
        owner, key = draw(st.sampled_from(places))
        owner[key] = draw(ANY)
    payload = json.dumps(document).encode()
    if framing is Framing.AWS_EVENT_STREAM:
        name = draw(st.sampled_from(["contentBlockDelta", "contentBlockStart", "messageStop",
                                     "metadata", "messageStart", "unheardOf"]))  # fmt: skip
        return frame("event", name, payload)
    return event[:start] + payload + event[end:]


def _places(value: Any) -> Any:
    """Every entry of every object and list within, as (owner, key)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@each_dialect
@FUZZED
@given(data=st.data())
def test_no_mangled_stream_breaks_a_codec(dialect, data):
    recording = data.draw(st.sampled_from(BY_DIALECT[dialect]))
    stream = data.draw(mangled(recording))
    cuts = data.draw(st.lists(st.integers(0, 10_000), max_size=4))
    with contextlib.suppress(ProviderFailure):
        hear(recording.route, recording.request, recording.framing, split(stream, cuts))


@each_dialect
@FUZZED
@given(data=st.data(), body=st.binary(max_size=60) | ANY.map(lambda v: json.dumps(v).encode()))
def test_no_body_breaks_a_codec(dialect, data, body):
    recording = data.draw(st.sampled_from(BY_DIALECT[dialect]))
    codec, route, request = DIALECTS[dialect], recording.route, recording.request
    status = data.draw(st.sampled_from([400, 401, 402, 403, 404, 413, 422, 429, 500, 503, 529]))
    failure = codec.decode_error(status, {}, body)
    assert failure.message.isprintable()
    for read in (
        lambda: codec.decoder(request, route).whole(body),
        lambda: codec.decode_embed(model_pb2.EmbedRequest(inputs=["a"]), route, body),
        lambda: codec.decode_count(route, body),
    ):
        with contextlib.suppress(ProviderFailure):
            read()


REQUESTS = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from([1, 2, 3, 4])},
                optional={
                    "content": st.lists(
                        st.fixed_dictionaries({"text": st.text(max_size=8)})
                        | st.just({"image": {"data": "AAAA", "mediaType": "image/png"}})
                        | st.just({"image": {"uri": "https://h/x.png"}}),
                        max_size=3,
                    ),
                    "toolCalls": st.lists(
                        st.fixed_dictionaries(
                            {"id": st.text(max_size=3), "name": st.text(max_size=3)},
                            optional={"arguments": st.sampled_from(["{}", '{"a":1}', "[", "7"])},
                        ),
                        max_size=2,
                    ),
                    "toolCallId": st.text(max_size=3),
                    "reasoningState": st.lists(
                        st.fixed_dictionaries(
                            {
                                "provider": st.sampled_from(
                                    ["anthropic", "gemini", "deepseek", "bedrock", "simulator"]
                                ),
                                "data": st.sampled_from(["", "e30=", "W10=", "W3t9XQ==", "//8="]),
                            }
                        ),
                        max_size=2,
                    ),
                },
            ),
            max_size=4,
        ),
        "prompt": st.text(max_size=4),
        "sampling": st.fixed_dictionaries(
            {},
            optional={
                "maxTokens": st.integers(1, 9000),
                "temperature": st.floats(0, 2, width=32),
                "topK": st.integers(-1, 50),
                "seed": st.integers(0, 9),
                "n": st.integers(1, 8),
                "stop": st.lists(st.text(min_size=1, max_size=3), max_size=6),
                "logprobs": st.integers(0, 3),
            },
        ),
        "tools": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g"])},
                optional={"parametersJsonSchema": st.sampled_from(["{}", "[]", "{", ""])},
            ),
            max_size=2,
        ),
        "toolChoice": st.fixed_dictionaries(
            {"mode": st.integers(0, 3)}, optional={"name": st.sampled_from(["f", "x"])}
        ),
        "responseFormat": st.sampled_from(
            [{"jsonObject": {}}, {"jsonSchema": "{}"}, {"jsonSchema": "["}, {"regex": "a"}]
        ),
        "reasoning": st.fixed_dictionaries({"effort": st.integers(0, 4)}),
        "continuation": st.fixed_dictionaries(
            {}, optional={"text": st.text(max_size=4), "tokenIds": st.just([1, 2])}
        ),
    },
)


@each_dialect
@FUZZED
@given(data=st.data(), document=REQUESTS)
def test_every_request_is_encoded_or_refused_in_our_words(dialect, data, document):
    route = data.draw(st.sampled_from(BY_DIALECT[dialect])).route
    request = json_format.ParseDict(document, pb.GenerateRequest())
    codec = DIALECTS[dialect]
    with contextlib.suppress(Fault):
        encoded = codec.encode_request(request, route)
        assert isinstance(json.loads(encoded.body), dict)
        assert encoded.path.startswith("/")
    with contextlib.suppress(Fault):
        codec.encode_count(request, route)
