"""vLLM's own parsers of tool calls and reasoning: the one file that knows their interface.

vLLM 0.25 to 0.33 compose a tool parser and a reasoning parser into one `Parser` of `parse_delta`;
that is what is relied on, with the request of its OpenAI server as the parsers' input. What an
answer's parts become is answer_parser's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from services.local_engine.engine import Constraint, ConstraintKind
from services.local_engine.on_vllm.parser_names import ParserNames, check_registered

_log = logging.getLogger(__name__)

EXPRESSION_S = 0.1
"""Seconds that a parser's regular expression may search (CVE-2025-48887 is about one of them)."""

# They log what they cannot parse, with the model's words: into no log of ours.
_LOUD = ("vllm.tool_parsers", "vllm.reasoning", "vllm.parser")


class VllmParsers:
    """Makes parsers for a model. Raises ValueError for names or a tokenizer that do not fit."""

    def __init__(self, names: ParserNames, tokenizer: Any, model_config: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        _limit_expressions()
        for logger in _LOUD:
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self.names = names
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._request = ChatCompletionRequest
        # Composed without tools first: two of vLLM's composed classes exist only once.
        self._plain = self._composed(names._replace(tools="")) if names.reasoning else None
        self._full = self._composed(names) if names.tools else None
        for kind in filter(None, (self._plain, self._full)):
            self._try(kind)

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self._tokenizer

    def request(
        self,
        *,
        history: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        choice: Any,
    ) -> Any:
        """vLLM's form of a request, as far as parsers look at it.

        `history` are the turns that have tool calls; `choice` is as in OpenAI's API. Raises
        ValueError for tools that vLLM refuses.
        """
        fields: dict[str, Any] = {
            "model": "model",
            "messages": [{"role": "user", "content": ""}, *history],
        }
        if tools:
            fields |= {"tools": [dict(tool) for tool in tools], "tool_choice": choice}
        return self._request(**fields)

    def parser(self, request: Any, template_arguments: Mapping[str, Any]) -> Any:
        """A fresh parser, for one choice."""
        kind = self._full if request.tools else self._plain
        assert kind is not None
        made = kind(
            self._tokenizer,
            request.tools,
            chat_template_kwargs=dict(template_arguments),
            model_config=self._model_config,
        )
        if made.tool_parser is not None and request.tool_choice not in ("auto", "none", None):
            _keep_text(made)
        return made

    def _composed(self, names: ParserNames) -> Any:
        from vllm.parser import ParserManager

        return ParserManager.get_parser(
            tool_parser_name=names.tools or None,
            reasoning_parser_name=names.reasoning,
            enable_auto_tools=bool(names.tools),
            model_name=self._model_config.model,
            is_harmony=self._model_config.hf_config.model_type == "gpt_oss",
        )

    def _try(self, kind: Any) -> None:
        try:
            kind(self._tokenizer, None, chat_template_kwargs={}, model_config=self._model_config)
        except Exception as wrong:
            given = ", ".join(filter(None, self.names))
            raise ValueError(f"the parsers {given} do not fit the model: {wrong}") from wrong


def _keep_text(parser: Any) -> None:
    """Has a composed parser read calls that were forced into JSON.

    vLLM looks for them in all the text so far, which it does not keep where both parts work on
    events: such calls were lost (granite and seed_oss, seen in 0.32.0; 0.25.1 reads alike).
    """
    tools = parser.tool_parser
    if getattr(tools, "supports_required_and_named", False) and is_engine_based(parser):
        parser._engine_based = parser._stream_state.engine_based = False


def _limit_expressions() -> None:
    """Has parsers give up their regular expressions early: all streams wait meanwhile.

    vLLM's variable for it counts whole seconds; the module that parsers ask takes any number.
    """
    from vllm import envs

    name = "VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS"
    if not (hasattr(envs, "is_set") and envs.is_set(name)):
        setattr(envs, name, EXPRESSION_S)


def check_names(names: ParserNames) -> None:
    """Raises ValueError for names that this vLLM does not have."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    check_registered(
        "ANABRANCH_ENGINE_TOOL_PARSER", names.tools, _registered(ToolParserManager, "tool_parsers")
    )
    check_registered(
        "ANABRANCH_ENGINE_REASONING_PARSER",
        names.reasoning,
        _registered(ReasoningParserManager, "reasoning_parsers"),
    )


def registered_names() -> tuple[list[str], list[str]]:
    """The tool parsers and the reasoning parsers that this vLLM has."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return (
        _registered(ToolParserManager, "tool_parsers"),
        _registered(ReasoningParserManager, "reasoning_parsers"),
    )


def _registered(manager: Any, eager: str) -> list[str]:
    if hasattr(manager, "list_registered"):
        return list(manager.list_registered())
    return sorted({*getattr(manager, eager, ()), *getattr(manager, "lazy_parsers", ())})


def constraint_of(request: Any) -> Constraint | None:
    """The form that a parser has put into its request, so that calls come out of it."""
    form = request.structured_outputs
    if form is None:
        return None
    if form.structural_tag is not None:
        return Constraint(ConstraintKind.STRUCTURAL_TAG, str(form.structural_tag), origin="tools")
    if form.json is not None:
        text = form.json if isinstance(form.json, str) else json.dumps(form.json)
        return Constraint(ConstraintKind.JSON_SCHEMA, text, origin="tools")
    if form.grammar is not None:
        return Constraint(ConstraintKind.GRAMMAR, form.grammar, origin="tools")
    raise ValueError("the tool parser wants a form of constraint that is not known here")


def is_incremental(parser: Any) -> bool:
    """Whether a parser's work for a delta does not grow with the text before it.

    vLLM's engine-based ones say so of themselves, but read a call's arguments again each time.
    """
    reasoning, tools = parser.reasoning_parser, parser.tool_parser
    return tools is None and bool(getattr(reasoning, "engine_based_streaming", False))


def is_engine_based(parser: Any) -> bool:
    """Whether all of a parser works on events, for the end of a stream as well as within it."""
    parts = (parser.reasoning_parser, parser.tool_parser)
    return all(getattr(p, "engine_based_streaming", False) for p in parts if p is not None)


def reads_own_calls(parser: Any, choice: Any) -> bool:
    """Whether calls are in the model's own form, and not the JSON that vLLM forces them into."""
    tools = parser.tool_parser
    if tools is None or choice == "none":
        return False
    return choice == "auto" or not getattr(tools, "supports_required_and_named", True)


def whole_calls(
    parser: Any, request: Any, text: str, *, reasoned: bool
) -> tuple[str, str, list[Any]]:
    """Reasoning, content and calls (`id`, `function.name`, `.arguments`) of a finished text.

    `reasoned` says that the text begins with reasoning. `parser` is a fresh one.
    """
    reasoning: str | None = None
    content: str | None = text
    if reasoned and parser.reasoning_parser is not None:
        reasoning, content = parser.reasoning_parser.extract_reasoning(text, request)
    found = parser.tool_parser.extract_tool_calls(content or "", request)
    calls = list(found.tool_calls) if found.tools_called else []
    return reasoning or "", found.content or "", calls


def reasoning_tokens(parser: Any, token_ids: Sequence[int]) -> int:
    """How many of a choice's tokens are reasoning, as vLLM counts; 0 where it cannot tell."""
    counter = parser if hasattr(parser, "count_reasoning_tokens") else parser.reasoning_parser
    return 0 if counter is None else int(counter.count_reasoning_tokens(token_ids))
