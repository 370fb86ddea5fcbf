"""The simulation's reversible tokenizer: made-up words of two syllables, and bytes for the rest.

    0            end of the answer, no text
    1            the label "[sim]" that every answer begins with
    2 … 257      the 256 bytes of UTF-8
    258 … 4353   the words: a space and two syllables, such as " bako"

A known word is one token and everything else one token a byte, so `decode(encode(text))` is the
text again. It resembles no real model's tokenizer; prompts of plain prose are long in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

EOS = 0
LABEL = 1
LABEL_TEXT = "[sim]"
FIRST_BYTE = 2
FIRST_WORD = FIRST_BYTE + 256

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeio"
_SYLLABLES = tuple(c + v for c in _CONSONANTS for v in _VOWELS)
_WORDS = tuple(f" {a}{b}" for a in _SYLLABLES for b in _SYLLABLES)
WORDS = len(_WORDS)
VOCABULARY = FIRST_WORD + WORDS
LONGEST = max(len(LABEL_TEXT), *map(len, _WORDS))
"""Bytes of text that one token stands for at most."""

_IDS = {word: FIRST_WORD + number for number, word in enumerate(_WORDS)}
_PIECES = re.compile(r" (?:[bdfghjklmnprstvz][aeio]){2}(?![a-z])|\[sim\]|.", re.DOTALL)


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    token_ids: list[int] = []
    for piece in _PIECES.findall(text):
        known = _IDS.get(piece)
        if known is not None:
            token_ids.append(known)
        elif piece == LABEL_TEXT:
            token_ids.append(LABEL)
        else:
            token_ids.extend(FIRST_BYTE + byte for byte in piece.encode("utf-8", "replace"))
    return token_ids


def decode(token_ids: Sequence[int]) -> str:
    """The text of token ids; bytes that form no character become U+FFFD."""
    pieces: list[str] = []
    pending = bytearray()
    for token_id in token_ids:
        if FIRST_BYTE <= token_id < FIRST_WORD:
            pending.append(token_id - FIRST_BYTE)
            continue
        if pending:
            pieces.append(pending.decode("utf-8", "replace"))
            pending.clear()
        pieces.append(word(token_id))
    if pending:
        pieces.append(pending.decode("utf-8", "replace"))
    return "".join(pieces)


def word(token_id: int) -> str:
    """The text of a token that is not a byte; raises IndexError outside the vocabulary."""
    if token_id >= FIRST_WORD:
        return _WORDS[token_id - FIRST_WORD]
    return LABEL_TEXT if token_id == LABEL else ""
