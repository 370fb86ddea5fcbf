"""Signatures of a Gemini turn go back on the parts that they came with, or are refused."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, reason_name
from tests.support.gemini import (
    OLDER,
    called,
    parts_of,
    routed,
    state,
    turn,
)
from tests.support.recordings import RECORDINGS, load


def test_signatures_go_back_on_the_parts_that_they_came_with():
    layout = {
        "version": 1,
        "parts": [
            {"thought": "hm", "signature": "T0"},
            {"text": 5},
            {"text": 3, "signature": "T1"},
            {"call": 0},
            {"text": 1},
            {"call": 1, "signature": "T2"},
            {"text": 0, "signature": "T3"},
        ],
    }
    calls = [called("f"), called("g", "", "c2", 1), called("new", "", "c3", 2)]
    f, g, new = (
        {"functionCall": {"name": n, "args": {}, "id": i}}
        for n, i in (("f", "c1"), ("g", "c2"), ("new", "c3"))
    )
    assert parts_of(turn("One 🌊two!", calls, [state(layout)])) == [
        {"text": "hm", "thought": True, "thoughtSignature": "T0"},
        {"text": "One 🌊"},
        {"text": "two", "thoughtSignature": "T1"},
        f,
        {"text": "!"},
        {**g, "thoughtSignature": "T2"},
        {"text": "", "thoughtSignature": "T3"},
        new,
    ]


def test_signatures_of_text_that_has_changed_are_kept_beside_it():
    layout = {
        "version": 1,
        "parts": [
            {"thought": "hm", "signature": "T0"},
            {"text": 2},
            {"text": 3, "signature": "T1"},
            {"call": 0, "signature": "T2"},
        ],
    }
    f = {"functionCall": {"name": "f", "args": {}, "id": "c1"}, "thoughtSignature": "T2"}
    thought = {"text": "hm", "thought": True, "thoughtSignature": "T0"}
    signed = {"text": "", "thoughtSignature": "T1"}
    longer = parts_of(turn("something else", [called("f")], [state(layout)]))
    assert longer == [thought, {"text": "something else"}, signed, f]
    assert parts_of(turn("", [called("f")], [state(layout)])) == [thought, signed, f]


@pytest.mark.parametrize("name", ["thoughts_then_call", "parallel_calls", "signed_text"])
def test_a_recorded_turn_goes_back_as_it_came(name):
    recording = load(RECORDINGS / "gemini" / f"{name}.json")
    got = recording.hear([recording.data])
    calls = [pb.ToolCall(index=n, **call) for n, call in enumerate(got.calls.get("0", []))]
    message = turn(got.text.get("0", ""), calls, [state(got.replay["0"].encode())])
    sent = parts_of(message, recording.route)
    documents = [
        json.loads(line.removeprefix("data: "))
        for line in recording.data.decode().split("\r\n")
        if line
    ]
    came = [
        part
        for document in documents
        for part in document["candidates"][0]["content"]["parts"]
        if not part.get("thought")
    ]
    signed = [part["thoughtSignature"] for part in came if "thoughtSignature" in part]
    assert [part["thoughtSignature"] for part in sent if "thoughtSignature" in part] == signed
    assert "".join(p.get("text", "") for p in sent) == "".join(p.get("text", "") for p in came)
    for part in sent:
        if "thoughtSignature" in part and "functionCall" in part:
            name_of = part["functionCall"]["name"]
            (origin,) = (p for p in came if p.get("thoughtSignature") == part["thoughtSignature"])
            assert origin["functionCall"]["name"] == name_of


def test_calls_of_another_provider_are_marked_as_such_once():
    foreign = turn(
        calls=[called("f"), called("g", "", "c2", 1)], states=[state(b"\x00", "deepseek")]
    )
    first, second = parts_of(foreign)
    # What is documented for turns of other models; it must be base64, as every signature.
    assert first["thoughtSignature"] == "skip_thought_signature_validator"
    assert base64.urlsafe_b64decode(first["thoughtSignature"])
    assert "thoughtSignature" not in second
    assert all("thoughtSignature" not in part for part in parts_of(foreign, routed(OLDER)))


def test_vertex_and_gemini_do_not_read_each_others_state():
    layout = {"version": 1, "parts": [{"text": 2, "signature": "T"}]}
    there = routed(provider="vertex-ai")
    assert parts_of(turn("ab", states=[state(layout)]), there) == [{"text": "ab"}]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff",
        [],
        {},
        {"version": 2, "parts": []},
        {"version": 1, "parts": {}},
        {"version": 1, "parts": ["a"]},
        {"version": 1, "parts": [{}]},
        {"version": 1, "parts": [{"signature": "T"}]},
        {"version": 1, "parts": [{"text": 1, "call": 0}]},
        {"version": 1, "parts": [{"text": -1}]},
        {"version": 1, "parts": [{"text": True}]},
        {"version": 1, "parts": [{"text": "1"}]},
        {"version": 1, "parts": [{"call": 0.0}]},
        {"version": 1, "parts": [{"call": 1, "signature": "T"}]},
        {"version": 1, "parts": [{"call": 0}, {"call": 0}]},
        {"version": 1, "parts": [{"thought": 1, "signature": "T"}]},
        {"version": 1, "parts": [{"text": 2, "signature": 7}]},
        {"version": 1, "parts": [{"text": 2, "more": 7}]},
        {"version": 1, "parts": [{"text": 0}] * 5000},
    ],
)
def test_malformed_state_is_refused(document):
    with pytest.raises(Fault) as caught:
        parts_of(turn("ab", [called("f")], [state(document)]))
    assert reason_name(caught.value.reason) == "INVALID_REQUEST"
    assert [v.field for v in caught.value.violations] == ["messages[1].reasoning_state[0].data"]


def test_two_states_of_one_turn_are_refused():
    own = state({"version": 1, "parts": []})
    with pytest.raises(Fault) as caught:
        parts_of(turn("ab", states=[own, own]))
    assert reason_name(caught.value.reason) == "INVALID_REQUEST"


KEYS = st.sampled_from(["text", "call", "thought", "signature", "x"])
VALUES = st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=3) | st.floats()


@given(
    parts=st.lists(st.dictionaries(KEYS, VALUES, max_size=3) | VALUES, max_size=4),
    text=st.text(max_size=6),
)
def test_any_state_is_laid_out_or_refused_and_no_text_or_call_is_lost(parts, text):
    document = json.dumps({"version": 1, "parts": parts}).encode()
    told, sent = outcome(turn(text, [called("f")], [state(document)]))
    if told != "INVALID_REQUEST":
        assert told == ""
        assert "".join(p.get("text", "") for p in sent if not p.get("thought")) == text
        assert [p["functionCall"]["name"] for p in sent if "functionCall" in p] == ["f"]


def outcome(message: pb.Message) -> tuple[str, list]:
    try:
        return "", parts_of(message)
    except Fault as fault:
        return reason_name(fault.reason), []
