"""Prompts as token ids: the model's own tokenizer and chat template. Does not import vLLM.

Short texts are tokenised where they are; long ones in a thread, on a copy of the tokenizer,
because they would hold up every stream of the event loop.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.local_engine import wire

T = TypeVar("T")

_LONG_TEXT = 4096  # characters, about 3 ms


class ChatTokenizer:
    """Wraps a Hugging Face tokenizer, as vLLM hands it out."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._thread_tokenizer = copy.deepcopy(tokenizer)
        self._thread_turn = asyncio.Lock()
        self.vocabulary = vocabulary

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's token ids. Raises Fault INVALID_REQUEST and UNSUPPORTED."""
        if request.messages:
            turns = wire.chat_turns(request.messages)
            size = sum(len(turn["content"]) for turn in turns)
            return await self._run(size, lambda tokenizer: _apply(tokenizer, turns))
        if request.prompt:
            text = request.prompt
            # With the tokens that the model puts before any text, as its tokenizer has it.
            found = await self._run(len(text), lambda tokenizer: list(tokenizer.encode(text)))
            if not found:
                raise invalid([Violation("prompt", "makes no token of this model's")])
            return found
        token_ids = list(request.prompt_token_ids)
        self.check(token_ids, "prompt_token_ids")
        return token_ids

    async def encode_text(self, text: str) -> list[int]:
        """The token ids of plain text, without special tokens."""
        return await self._run(
            len(text), lambda tokenizer: list(tokenizer.encode(text, add_special_tokens=False))
        )

    async def encode_each(self, texts: Sequence[str], *, lower: bool) -> list[list[int]]:
        """The token ids of each text with what the model puts around one; `lower` case first."""

        def work(tokenizer: Any) -> list[list[int]]:
            return [list(tokenizer.encode(text.lower() if lower else text)) for text in texts]

        return await self._run(sum(map(len, texts)), work)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def check(self, token_ids: Sequence[int], field: str) -> None:
        """Raises Fault INVALID_REQUEST when an id is none of the model's."""
        wire.check_vocabulary(token_ids, self.vocabulary, field)

    async def _run(self, size: int, work: Callable[[Any], T]) -> T:
        if size <= _LONG_TEXT:
            return work(self._tokenizer)
        async with self._thread_turn:
            return await asyncio.to_thread(work, self._thread_tokenizer)


def _apply(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    try:
        return list(
            tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
    except (TemplateError, ValueError) as refused:
        description = f"the model's chat template refuses them: {refused}"
        raise invalid([Violation("messages", description)]) from refused
