"""Which requests need their answers parsed, and refusals of those that this model cannot take.

Set up once, with the model. Parsing is answer_parser's, vLLM's interface parsers.py's.
"""

from __future__ import annotations

import logging
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.local_engine.chat_turns import refuse_tools, unsupported
from services.local_engine.on_vllm.answer_parser import VllmAnswerParser
from services.local_engine.on_vllm.chat_format import TOOLS_OFF, ChatFormat, template_text
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer
from services.local_engine.on_vllm.parser_names import ParserNames, evident
from services.local_engine.on_vllm.parsers import VllmParsers, registered_names

_log = logging.getLogger(__name__)


class AnswerParsers:
    """Parsers for a model's requests. `parsers` is None where it is set up for neither kind."""

    def __init__(
        self, names: ParserNames, tokenizer: ChatTokenizer, parsers: VllmParsers | None
    ) -> None:
        self._names = names
        self._tokenizer = tokenizer
        self._parsers = parsers

    @property
    def capabilities(self) -> tuple[pb.Capability, ...]:
        """What the model is set up for."""
        tools = (pb.CAPABILITY_TOOLS,) if self._names.tools else ()
        return tools + ((pb.CAPABILITY_REASONING,) if self._names.reasoning else ())

    def parser_for(self, request: pb.GenerateRequest) -> VllmAnswerParser | None:
        """A request's parser; None for one with neither tools nor reasoning."""
        if not request.messages:
            self._check_raw(request)
            return None
        if not self._names.tools:
            refuse_tools(request, TOOLS_OFF)
        thinking = self._tokenizer.chat.thinking(request)
        if self._parsers is None or not (request.tools or self._names.reasoning):
            return None
        return VllmAnswerParser(
            self._parsers,
            request,
            thinking,
            decode=self._tokenizer.decode,
            decode_all=self._tokenizer.decode_all,
        )

    def _check_raw(self, request: pb.GenerateRequest) -> None:
        """Without a chat template the model reads no tools, and is not told how much to think."""
        if request.tools:
            raise invalid([Violation("tools", "need messages: a raw prompt does not show them")])
        if request.reasoning.effort and self._names.reasoning:
            raise unsupported("reasoning.effort", "a raw prompt cannot tell the model to reason")


def chat_format(names: ParserNames, tokenizer: Any, template: str) -> ChatFormat:
    """The chat template's side of it; `template` replaces the tokenizer's own unless empty."""
    return ChatFormat(
        template_text(tokenizer),
        override=template,
        tools=bool(names.tools),
        reasoning=bool(names.reasoning),
    )


def answer_parsers(
    names: ParserNames, tokenizer: ChatTokenizer, raw_tokenizer: Any, model_config: Any
) -> AnswerParsers:
    """The parsers that an operator has named. Raises ValueError where they do not fit the model."""
    chat = tokenizer.chat
    if names.tools and not chat.shows_tools:
        _log.warning(
            "the model's chat template shows no tools: the model learns of none unless "
            "ANABRANCH_ENGINE_CHAT_TEMPLATE names one that does"
        )
    _hint(names, str(getattr(model_config.hf_config, "model_type", "")), chat.text)
    parsers = VllmParsers(names, raw_tokenizer, model_config) if any(names) else None
    return AnswerParsers(names, tokenizer, parsers)


def _hint(names: ParserNames, model_type: str, template: str) -> None:
    """Says which settings this model seems to want that are not set."""
    likely = evident(model_type, template)
    tools, reasoning = registered_names()
    if not names.tools and likely.tools in tools:
        _log.info(
            "the model seems to call tools: requests with tools are refused until "
            "ANABRANCH_ENGINE_TOOL_PARSER is set",
            extra={"suggested": likely.tools},
        )
    if not names.reasoning and likely.reasoning in reasoning:
        _log.info(
            "the model seems to reason: its reasoning is part of the text until "
            "ANABRANCH_ENGINE_REASONING_PARSER is set",
            extra={"suggested": likely.reasoning},
        )
