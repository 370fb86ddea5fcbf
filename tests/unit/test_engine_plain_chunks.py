"""Chunks written by hand are those that protobuf would have written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.plain_chunks import head, tail

numbers = st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 127, 128, 8191, 8192, 16384]))
texts = st.one_of(st.text(max_size=200), st.sampled_from(["", "x" * 127, "x" * 128, "日本"]))


@settings(max_examples=300, deadline=None)
@given(numbers, texts, st.lists(numbers, min_size=1, max_size=70))
def test_a_chunk_of_text_and_tokens_is_what_protobuf_makes_of_it(first_token, text, token_ids):
    chunk = pb.GenerateChunk(first_token=first_token, text=text, token_ids=token_ids)
    assert head(first_token) + tail(text.encode(), token_ids) == chunk.SerializeToString()
