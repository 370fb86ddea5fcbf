"""Text from a table of bytes is what tokenizers' own stream makes of the same tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.local_engine.on_vllm.token_bytes import ByteText, token_bytes_of

tokenizers = pytest.importorskip("tokenizers")

_TRAINING = [
    "the river runs to the sea",
    "日本語のテキスト",
    "naïve café 🙂🙃",
    "\u00ad soft \ufffd",
]
_SPECIAL, _ADDED = "<|end|>", "<tool é>"


def _byte_level():
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _TRAINING * 4,
        trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=alphabet,
            special_tokens=[_SPECIAL],
            show_progress=False,
        ),
    )
    made.add_tokens([tokenizers.AddedToken(_ADDED, special=False)])
    return made


BACKEND = _byte_level()
SIZE = BACKEND.get_vocab_size() + 3  # the model's matrix is larger than its vocabulary
TABLE = token_bytes_of(SimpleNamespace(backend_tokenizer=BACKEND), SIZE)


def _streamed(token_ids: list[int]) -> list[str]:
    """As vLLM does it, errors of the stream included."""
    stream = tokenizers.decoders.DecodeStream(ids=[], skip_special_tokens=True)
    texts = []
    for token_id in token_ids:
        texts.append(stream.step(BACKEND, token_id) or "")
    return texts


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, SIZE - 1), max_size=40))
def test_any_tokens_have_the_text_of_a_decode_stream_at_the_same_time(token_ids):
    assert TABLE is not None
    text = ByteText(TABLE)
    assert [text.feed([token_id]).decode() for token_id in token_ids] == _streamed(token_ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.data())
def test_the_same_tokens_have_the_same_text_however_many_come_at_once(written, data):
    assert TABLE is not None
    token_ids = BACKEND.encode(written).ids
    text, pieces, at = ByteText(TABLE), [], 0
    while at < len(token_ids):
        count = data.draw(st.integers(1, 5))
        pieces.append(text.feed(token_ids[at : at + count]))
        at += count
    assert b"".join(pieces).decode() == "".join(_streamed(token_ids)) == written


def test_a_special_token_has_no_text_and_an_added_one_stands_for_itself():
    assert TABLE is not None
    assert TABLE.raw[BACKEND.token_to_id(_SPECIAL)] == b""
    assert TABLE.raw[BACKEND.token_to_id(_ADDED)] == _ADDED.encode()
    assert TABLE.raw[SIZE - 1] == b""


def test_a_prompt_that_breaks_off_within_a_character_is_told_from_a_whole_one():
    assert TABLE is not None
    ids = [BACKEND.token_to_id(letter) for letter in "aæĹ¥"]  # an a, then 日 in three bytes
    inside = [TABLE.ends_inside_character(ids[:length]) for length in range(5)]
    assert inside == [False, False, True, True, False]


def test_a_tokenizer_whose_tokens_depend_on_their_neighbours_has_no_table():
    from tokenizers import decoders, models

    joined = tokenizers.Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    joined.decoder = decoders.WordPiece()
    assert token_bytes_of(SimpleNamespace(backend_tokenizer=joined), 2) is None
    assert token_bytes_of(SimpleNamespace(), 2) is None


def test_a_table_that_the_tokenizer_does_not_confirm_is_not_used():
    class Otherwise:
        """A tokenizer that writes one token in another way than its alphabet says."""

        def __getattr__(self, name):
            return getattr(BACKEND, name)

        def decode_batch(self, batch, **how):
            return ["?", *BACKEND.decode_batch(batch, **how)[1:]]

    assert token_bytes_of(SimpleNamespace(backend_tokenizer=Otherwise()), SIZE) is None
