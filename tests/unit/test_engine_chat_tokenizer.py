"""Prompts as token ids, with a tokenizer that puts a token of its own before each text."""

from __future__ import annotations

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer

WORDS = {"<s>": 0, "<unk>": 1, "once": 2, "upon": 3, "user": 4, "says": 5}
BOS = WORDS["<s>"]
TEMPLATE = "<s> {% for m in messages %}{{ m.role }} says {{ m.content }} {% endfor %}"


def tokenizer_of(*, puts_bos: bool = True) -> ChatTokenizer:
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    made.normalizer = normalizers.Replace("\u200b", "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if puts_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    return ChatTokenizer(fast, len(WORDS))


async def test_a_text_begins_as_the_model_s_texts_do():
    tokenizer = tokenizer_of()
    assert await tokenizer.encode(pb.GenerateRequest(prompt="once upon")) == [BOS, 2, 3]


async def test_a_conversation_begins_as_its_template_says_and_not_twice():
    turn = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="once")])
    found = await tokenizer_of().encode(pb.GenerateRequest(messages=[turn]))
    assert found == [BOS, WORDS["user"], WORDS["says"], WORDS["once"]]


async def test_what_goes_on_after_a_text_begins_nothing():
    assert await tokenizer_of().encode_text("upon") == [3]


async def test_token_ids_are_taken_as_they_are():
    for ids in ([3], [BOS], [2, BOS, len(WORDS) - 1]):
        assert await tokenizer_of().encode(pb.GenerateRequest(prompt_token_ids=ids)) == ids


@pytest.mark.parametrize("token", [-1, len(WORDS)])
async def test_an_id_next_to_the_vocabulary_is_refused(token):
    with pytest.raises(Fault) as refused:
        await tokenizer_of().encode(pb.GenerateRequest(prompt_token_ids=[2, token]))
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "prompt_token_ids"


async def test_a_text_that_makes_no_token_is_refused():
    assert await tokenizer_of().encode(pb.GenerateRequest(prompt="\u200b")) == [BOS]
    with pytest.raises(Fault) as refused:
        await tokenizer_of(puts_bos=False).encode(pb.GenerateRequest(prompt="\u200b"))
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "prompt"


async def test_texts_to_embed_get_what_the_model_puts_around_each():
    found = await tokenizer_of().encode_each(["Once", "UPON"], lower=True)
    assert found == [[BOS, 2], [BOS, 3]]
    assert await tokenizer_of().encode_each(["Once"], lower=False) == [[BOS, WORDS["<unk>"]]]
