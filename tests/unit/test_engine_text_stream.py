"""Text appears once, whole and in order, however tokens and stop strings fall."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local_engine.on_vllm.token_bytes import ByteText, TokenBytes
from services.local_engine.text_stream import (
    AnswerText,
    IncrementalText,
    StopScanner,
    ends_inside_character,
)


def decode(token_ids: Sequence[int]) -> str:
    """A byte a token."""
    return bytes(token_ids).decode("utf-8", "replace")


@given(st.text(), st.integers(0, 6))
def test_bytes_of_characters_are_held_until_the_character_is_whole(text, context):
    text = text.encode("utf-8", "replace").decode().replace("\N{REPLACEMENT CHARACTER}", "")
    incremental = IncrementalText(decode, b"prompt"[:context])
    pieces = [incremental.push((byte,)) for byte in text.encode()]
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_a_prompt_that_ends_inside_a_character_is_noticed_and_not_echoed():
    prompt = "ask 日".encode()[:-1]
    assert ends_inside_character(decode, prompt)
    assert not ends_inside_character(decode, b"ask")
    incremental = IncrementalText(decode, prompt)
    assert incremental.push("日".encode()[-1:]) + incremental.push(b"!") == "日!"


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back():
    incremental = IncrementalText(decode)
    early = incremental.push([0xFF] * 30)
    assert early
    assert early + incremental.push(b"ok") == "\N{REPLACEMENT CHARACTER}" * 30 + "ok"


def test_a_character_after_many_tokens_without_text_is_waited_for():
    silent = 300
    incremental = IncrementalText(lambda ids: decode([i for i in ids if i != silent]))
    pieces = [incremental.push((token,)) for token in [silent] * 9 + list("日".encode())]
    assert "".join(pieces) == "日"


_BYTES = st.sampled_from([0xFF, 0x80, 0xC3, 0xE2, 0x82, 0xAC, *b"ab"])
_RUNS = st.lists(st.tuples(_BYTES, st.integers(1, 14)), max_size=6)


@given(_RUNS, st.data())
def test_an_answer_of_any_bytes_can_be_resumed_anywhere(runs, data):
    tokens = [byte for byte, times in runs for _ in range(times)]
    cut = data.draw(st.integers(0, len(tokens)))
    table = TokenBytes([bytes((n,)) for n in range(256)])
    first, whole = ByteText(table), ByteText(table)
    sent = first.feed(tokens[:cut]).decode()
    rest = AnswerText(decode, b"prompt", continued=tokens[:cut], continued_text=sent)
    text = sent + rest.push(tokens[cut:])[0]
    # What is never followed by a character may or may not be shown.
    shown = (text.rstrip("\ufffd"), whole.feed(tokens).decode().rstrip("\ufffd"))
    assert shown[0] == shown[1]


def scan(stops: Sequence[str], pieces: Sequence[str], sent: str = "") -> tuple[str, str]:
    scanner = StopScanner(stops, sent)
    out = []
    for number, piece in enumerate(pieces, 1):
        text, stop = scanner.push(piece, last=number == len(pieces))
        out.append(text)
        if stop:
            return "".join(out), stop
    return "".join(out), ""


@given(
    st.lists(st.text("ab", max_size=4), min_size=1, max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_a_stop_string_is_found_wherever_the_pieces_break(pieces, stops):
    whole = "".join(pieces)
    text, stop = scan(stops, pieces)
    ends = [(whole.index(s) + len(s), s) for s in stops if s in whole]
    if not ends:
        assert (text, stop) == (whole, "")
        return
    # Piece by piece, the stop string that is complete first wins; within a piece, too.
    assert stop
    assert text == whole[: whole.index(stop)]
    assert whole.index(stop) + len(stop) == min(end for end, _ in ends)


@given(st.text("ab", max_size=12), st.integers(0, 12), st.text("ab", min_size=1, max_size=4))
def test_no_part_of_a_stop_string_is_released_early(text, cut, stop):
    scanner = StopScanner([stop])
    first, found = scanner.push(text[:cut])
    if not found:
        second, found = scanner.push(text[cut:], last=True)
        assert stop not in first + second
        assert first + second == (text.split(stop)[0] if found else text)


def test_a_stop_string_that_began_in_sent_text_still_ends_the_answer():
    assert scan(["END"], ["D more"], sent="the EN") == ("", "END")


def test_stop_strings_within_the_minimum_do_not_count():
    answer = AnswerText(decode, b"", stops=["b"], min_tokens=3)
    assert answer.push(b"abab")[:2] == ("aba", "b")
    assert AnswerText(decode, b"", stops=["b"], min_tokens=0).push(b"abab") == ("a", "b", 2)


def test_what_was_held_back_is_sent_first_when_an_answer_is_resumed():
    answer = AnswerText(decode, b"prompt", continued=b"hello", continued_text="hel")
    assert answer.push(b" you", last=True) == ("lo you", "", 4)


def test_a_resumed_answer_finds_the_stop_string_that_its_beginning_was_held_back_for():
    answer = AnswerText(decode, b"", stops=["END"], continued=b"so EN", continued_text="so ")
    assert answer.push(b"D.") == ("", "END", 1)


def test_text_that_is_not_that_of_the_tokens_is_refused():
    with pytest.raises(ValueError, match="not the beginning"):
        AnswerText(decode, b"", continued=b"abc", continued_text="abd")
