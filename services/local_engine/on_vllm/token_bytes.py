"""Text from tokens where each token is a string of bytes by itself: one look into a table.

So it is with byte-level BPE, which most models have. Does not import vLLM. What comes out when is
what tokenizers' DecodeStream gives, at a fiftieth of its cost and without reading the prompt first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_PARTIAL = "\N{REPLACEMENT CHARACTER}"
_LONGEST_TAIL = 4
"""Tokens that may be needed for the bytes of one character."""


class TokenBytes:
    """The bytes of every token; none of a special one or of an id that is no token's."""

    def __init__(self, raw: Sequence[bytes]) -> None:
        self.raw = tuple(raw)
        self.whole = tuple(_whole(each) for each in self.raw)
        """As `raw`, but None for those that are no text by themselves."""

    def ends_inside_character(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of these tokens breaks off within a character."""
        tail = [self.raw[token_id] for token_id in token_ids[-2 * _LONGEST_TAIL :]]
        return b"".join(tail).decode("utf-8", "replace").endswith(_PARTIAL)


class ByteText:
    """The text of one choice as its tokens come; its prompt ended with a whole character.

    Characters that are spread over several tokens appear once complete. Bytes that never become
    one appear as U+FFFD with the next character, or not at all.
    """

    __slots__ = ("_raw", "_whole", "pending")

    def __init__(self, tokens: TokenBytes) -> None:
        self._raw = tokens.raw
        self._whole = tokens.whole
        self.pending = b""
        """What is no character yet."""

    def feed(self, token_ids: Sequence[int]) -> bytes:
        """The text that these tokens complete, in UTF-8."""
        if len(token_ids) == 1 and not self.pending:
            whole = self._whole[token_ids[0]]
            if whole is not None:
                return whole
        pieces = []
        for token_id in token_ids:
            self.pending += self._raw[token_id]
            text = self.pending.decode("utf-8", "replace")
            if text and not text.endswith(_PARTIAL):
                pieces.append(text.encode())
                self.pending = b""
        return b"".join(pieces)

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> tuple[str, str, int]:
        """As AnswerText.push, of which no stop strings are asked."""
        return self.feed(token_ids).decode(), "", len(token_ids)


def token_bytes_of(tokenizer: Any, vocabulary: int) -> TokenBytes | None:
    """The table of a Hugging Face tokenizer; None where a token's text depends on others.

    The alphabet is that of GPT-2's byte-level BPE (Radford et al. 2019). Every entry is compared
    with what the tokenizer itself makes of the token, and a long text with its whole.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is None or json.loads(backend.decoder.__getstate__())["type"] != "ByteLevel":
            return None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    alphabet = _alphabet()
    raw = [
        b"" if number in special else _bytes_of(backend.id_to_token(number), alphabet)
        for number in range(vocabulary)
    ]
    found = TokenBytes(raw)
    return found if _agrees(found, backend) else None


def _agrees(found: TokenBytes, backend: Any) -> bool:
    """Whether the tokenizer makes the same of each token, and of all of them in a row."""
    count = len(found.raw)
    texts = backend.decode_batch([[number] for number in range(count)], skip_special_tokens=True)
    if texts != [raw.decode("utf-8", "replace") for raw in found.raw]:
        return False
    row = range(0, count, max(1, count // 4096))
    together = b"".join(found.raw[number] for number in row).decode("utf-8", "replace")
    return bool(backend.decode(list(row), skip_special_tokens=True) == together)


def _bytes_of(token: str | None, alphabet: Mapping[str, int]) -> bytes:
    if token is None:
        return b""
    try:
        return bytes(alphabet[letter] for letter in token)
    except KeyError:
        return token.encode()  # an added token stands for itself


def _whole(raw: bytes) -> bytes | None:
    try:
        return None if raw.decode().endswith(_PARTIAL) else raw
    except UnicodeDecodeError:
        return None


def _alphabet() -> dict[str, int]:
    """Each letter's byte: printable ones stand for themselves, the others follow from 256 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
