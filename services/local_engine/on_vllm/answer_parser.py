"""Takes reasoning and tool calls out of a request's answers with vLLM's parsers, as they come.

One request, a parser for each of its choices; what happens within a choice is parsed_choice's.
Does not import vLLM: parsers.py does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, Work, invalid
from services.local_engine.chat_turns import tool_entries, unsupported
from services.local_engine.engine import Continuation, Delta, Finish, SamplingSpec
from services.local_engine.on_vllm import parsers as vllm_parsers
from services.local_engine.on_vllm.parsed_choice import ParsedChoice, Reading
from services.local_engine.on_vllm.parsers import VllmParsers
from services.local_engine.text_stream import Decode

_log = logging.getLogger(__name__)

_LONG_TOOLS = 4096  # bytes, some milliseconds of checking them and making a constraint
_RESUME_CALLS = "an answer that may call tools cannot be resumed in the middle of a call"


class VllmAnswerParser:
    """AnswerParser of one request. `thinking` are its arguments of the chat template.

    `decode` and `decode_all` make text of tokens, without and with special tokens; `cpu_time` is
    the seconds that this thread has computed.
    """

    def __init__(
        self,
        parsers: VllmParsers,
        asked: pb.GenerateRequest,
        thinking: Mapping[str, Any],
        *,
        decode: Decode,
        decode_all: Decode,
        cpu_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._parsers = parsers
        self._asked = asked
        self._thinking = thinking
        self._decode = decode
        self._decode_all = decode_all
        self._cpu_time = cpu_time
        self._request: Any = None
        self._reading: Reading | None = None
        self._choices: dict[int, ParsedChoice] = {}

    async def shape(self, spec: SamplingSpec) -> SamplingSpec:
        """Adds what the parser wants sampled: special tokens in the text, a form for calls."""
        if sum(tool.ByteSize() for tool in self._asked.tools) > _LONG_TOOLS:
            return await asyncio.to_thread(self._shape, spec)
        return self._shape(spec)

    def _shape(self, spec: SamplingSpec) -> SamplingSpec:
        asked = self._asked
        choice = _choice_of(asked.tool_choice) if asked.tools else "none"
        forced = choice not in ("auto", "none")
        if forced and spec.constraint is not None:
            text = "cannot hold for an answer whose tool_choice demands a call"
            raise invalid([Violation("response_format", text)])
        tools = tool_entries(asked.tools, strict=forced)
        try:
            request = self._parsers.request(history=_history(asked), tools=tools, choice=choice)
            parser = self._parsers.parser(request, self._thinking)
            if choice != "none" or parser.reasoning_parser is not None:
                request = parser.adjust_request(request)
            constraint = vllm_parsers.constraint_of(request)
        except (ValueError, TypeError, RuntimeError, RecursionError) as refused:
            description = f"the model's parser of tool calls refuses them: {refused}"
            raise invalid([Violation("tools", description)]) from refused
        if forced and constraint is None:
            text = "calls in this model's own form cannot be demanded, only hoped for"
            raise unsupported("tool_choice", text)
        if constraint is not None and spec.constraint is not None:
            raise unsupported("tools with response_format", "this model takes one or the other")
        if constraint is not None and asked.HasField("continuation"):
            raise unsupported("continuation of tools", _RESUME_CALLS)
        self._request = request
        reasons = parser.reasoning_parser is not None
        return replace(
            spec,
            constraint=constraint or spec.constraint,
            special_tokens=not request.skip_special_tokens,
            thinking=dict(self._thinking) if reasons and not _has_own_rule(request) else None,
        )

    def begin(
        self, spec: SamplingSpec, prompt: Sequence[int], continuation: Continuation
    ) -> Continuation:
        """Has the engine send all text of a continuation, which is parsed again."""
        parser = self._parsers.parser(self._request, self._thinking)
        tokens = list(prompt)
        reasoned = parser.reasoning_parser is not None and not parser.is_reasoning_end(tokens)
        if reasoned and continuation.text and not self._asked.continuation.token_ids:
            raise unsupported(
                "continuation of reasoning",
                "after its text alone, without token ids, it is unknown what was reasoned",
            )
        self._reading = Reading(
            request=self._request,
            prompt=tokens,
            reasoned=reasoned,
            includes=not self._asked.reasoning.HasField("include") or self._asked.reasoning.include,
            continued=continuation.token_ids,
            delivered=continuation.text,
            decode=self._decode_all if spec.special_tokens else self._decode,
            aligns=bool(spec.stop),
            new_parser=lambda: self._parsers.parser(self._request, self._thinking),
            cpu_time=self._cpu_time,
        )
        return Continuation(continuation.token_ids, "")

    def push(self, delta: Delta) -> Delta:
        """The delta with its text taken apart."""
        if delta.finish is Finish.CANCELLED or self._reading is None:
            return self._counted(replace(delta, text=""))
        try:
            choice = self._choices.get(delta.index)
            if choice is None:
                choice = self._choices[delta.index] = ParsedChoice(self._reading)
            return self._counted(choice.push(delta))
        except Fault:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: a parser's failure ends its request
            raise _failed(error) from None

    def _counted(self, delta: Delta) -> Delta:
        if delta.usage is None:
            return delta
        reasoning = sum(choice.reasoning_tokens() for choice in self._choices.values())
        return replace(delta, usage=replace(delta.usage, reasoning=reasoning))


def _history(asked: pb.GenerateRequest) -> list[dict[str, Any]]:
    """The turns that have calls, without their contents: parsers number calls through them."""
    return [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments or "{}"},
                }
                for call in message.tool_calls
            ],
        }
        for message in asked.messages
        if message.tool_calls
    ]


def _choice_of(choice: pb.ToolChoice) -> Any:
    if choice.mode == pb.ToolChoice.MODE_NONE:
        return "none"
    if choice.mode != pb.ToolChoice.MODE_REQUIRED:
        return "auto"
    if not choice.name:
        return "required"
    return {"type": "function", "function": {"name": choice.name}}


def _has_own_rule(request: Any) -> bool:
    """Whether a grammar of the parser's own says where reasoning may stand (Mistral's does)."""
    names = ("_grammar_from_parser", "_grammar_from_tool_parser")
    return any(getattr(request, name, False) for name in names)


def _failed(error: Exception) -> Fault:
    """INTERNAL. The error's text may hold the model's words: the log gets its kind and place."""
    incident = secrets.token_hex(6)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    _log.error(
        "an answer could not be parsed",
        extra={"incident": incident, "error": type(error).__name__, "place": place},
    )
    return Fault(
        errors_pb2.ERROR_REASON_INTERNAL,
        f"the answer could not be parsed; incident {incident} in the service's log",
        work=Work.MAYBE_BILLED,
        metadata={"incident": incident},
    )
