"""The form of API keys: what is one, what is not, and what may be said of it."""

from __future__ import annotations

import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch import api_keys

SECRET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg"
BEGUN = f"abk_4k9x0q2m7c1v8b5n_{SECRET}"
KEY = BEGUN + api_keys.checksum(BEGUN)


def test_a_whole_key_is_well_formed_and_shows_its_public_id() -> None:
    assert len(KEY) == 70
    assert api_keys.is_well_formed(KEY)
    assert api_keys.public_id(KEY) == "4k9x0q2m7c1v8b5n"


@pytest.mark.parametrize(
    ("crc", "digits"),
    [(0, "000000"), (61, "00000z"), (62, "000010"), (2**32 - 1, "4gfFC3")],
)
def test_the_checksum_is_the_crc_in_base62(
    crc: int, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda data: crc)
    assert api_keys.checksum("x") == digits


def test_the_checksum_of_the_standards_check_value() -> None:
    # CRC-32 of "123456789" is 0xCBF43926.
    value = 0
    for digit in api_keys.checksum("123456789"):
        value = value * 62 + api_keys.BASE62.index(digit)
    assert value == 0xCBF43926


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "begin with abk_"),
        ("eyJhbGciOiJFZERTQSJ9.e30.x", "begin with abk_"),
        (f" {KEY}", "begin with abk_"),
        (KEY[:-1], "69 characters"),
        (f"{KEY}\n", "71 characters"),
        (KEY.replace("4k9x", "4K9x"), "none belong"),
        (KEY.replace("5n_", "5n-"), "none belong"),
        (KEY.replace("4k9x", "٤k9x"), "none belong"),
        (KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), "checksum"),
    ],
)
def test_what_is_wrong_is_said_without_quoting_the_key(text: str, fault: str) -> None:
    assert not api_keys.is_well_formed(text)
    assert fault in api_keys.fault(text)
    assert SECRET[:8] not in api_keys.fault(text)
    with pytest.raises(ValueError, match=re.escape(fault)) as caught:
        api_keys.public_id(text)
    assert SECRET[:8] not in str(caught.value)


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_one_wrong_character_is_always_noticed(at: int, character: str) -> None:
    wrong = KEY[:at] + character + KEY[at + 1 :]
    assert api_keys.is_well_formed(wrong) == (wrong == KEY)


@given(st.integers(0, len(KEY) - 2))
def test_two_swapped_characters_are_always_noticed(at: int) -> None:
    swapped = KEY[:at] + KEY[at + 1] + KEY[at] + KEY[at + 2 :]
    assert api_keys.is_well_formed(swapped) == (swapped == KEY)


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert isinstance(api_keys.fault(text), str)
    assert len(api_keys.checksum(text)) == 6


@pytest.mark.parametrize("text", ["key=%s;", "%s", '{"k":"%s"}', "https://x/?a_%s_b", "x%sx"])
def test_a_scanner_finds_a_key_wherever_it_leaked(text: str) -> None:
    found = re.findall(api_keys.SCANNER, text % KEY)
    assert found == [KEY]
