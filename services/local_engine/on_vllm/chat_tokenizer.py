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
from services.local_engine.chat_turns import Turn, chat_turns, text_size
from services.local_engine.on_vllm.chat_format import TOOLS_OFF, ChatFormat, template_text
from services.local_engine.on_vllm.token_bytes import token_bytes_of

T = TypeVar("T")

_LONG_TEXT = 4096  # characters, about 3 ms


class ChatTokenizer:
    """Wraps a Hugging Face tokenizer, as vLLM hands it out."""

    def __init__(self, tokenizer: Any, vocabulary: int, chat: ChatFormat | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat = chat or ChatFormat(template_text(tokenizer))
        self._thread_tokenizer = copy.deepcopy(tokenizer)
        self._thread_turn = asyncio.Lock()
        self.vocabulary = vocabulary
        self.token_bytes = token_bytes_of(tokenizer, vocabulary)
        """Each token's bytes; None where a token's text depends on its neighbours."""

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's token ids. Raises Fault INVALID_REQUEST and UNSUPPORTED."""
        if request.messages:
            turns = chat_turns(request.messages, tools=self.chat.tools, why_not=TOOLS_OFF)
            arguments = self.chat.arguments(request)
            size = text_size(turns) + sum(t.ByteSize() for t in request.tools)
            return await self._run(size, lambda tokenizer: _apply(tokenizer, turns, arguments))
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

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def check(self, token_ids: Sequence[int], field: str) -> None:
        """Raises Fault INVALID_REQUEST when an id is none of the model's."""
        wire.check_vocabulary(token_ids, self.vocabulary, field)

    async def _run(self, size: int, work: Callable[[Any], T]) -> T:
        if size <= _LONG_TEXT:
            return work(self._tokenizer)
        async with self._thread_turn:
            return await asyncio.to_thread(work, self._thread_tokenizer)


def _apply(tokenizer: Any, turns: list[Turn], arguments: dict[str, Any]) -> list[int]:
    try:
        return list(
            tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **arguments,
            )
        )
    except (TemplateError, TypeError, ValueError) as refused:
        description = f"the model's chat template refuses them: {refused}"
        raise invalid([Violation("messages", description)]) from refused
