"""One choice's text on its way through a parser of vLLM's, and what came out of it so far.

The parsers are vLLM's, behind parsers.py. What they hold back or lose at an answer's end is made
good here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.chassis.errors import Violation, invalid
from services.local_engine.call_fragments import CallFragments
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import Delta, Finish, ToolCallDelta
from services.local_engine.on_vllm import parsers as vllm_parsers
from services.local_engine.parser_feed import ParserFeed
from services.local_engine.text_stream import Decode

GRACE_S, TOKEN_S = 1.0, 0.002
"""CPU seconds that parsing may take: at all, and more for each token. A parser in its right mind
takes a hundredth; one that backtracks over a hostile text would hold up every stream."""

Calls = tuple[ToolCallDelta, ...]


class ParserTooSlowError(Exception):
    """A parser takes so long that every stream of the process waits for it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the choices of a request have in common.

    `reasoned`: answers begin with reasoning. `includes`: it is wanted. `continued` and
    `delivered` are a continuation's tokens and text. `aligns`: text may come after its tokens.
    """

    request: Any
    prompt: list[int]
    reasoned: bool
    includes: bool
    continued: Sequence[int]
    delivered: str
    decode: Decode
    aligns: bool
    new_parser: Callable[[], Any]
    cpu_time: Callable[[], float]


class ParsedChoice:
    """The parser of one choice, fed as its deltas come."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parser = reading.new_parser()
        incremental = vllm_parsers.is_incremental(self._parser)
        whole = not vllm_parsers.is_engine_based(self._parser)
        self._feed = ParserFeed(
            incremental=incremental,
            decode=reading.decode if reading.aligns and whole else None,
            context=reading.prompt,
        )
        self._feed.add("", reading.continued)
        # Parsers that work on the whole text give it up at its end differently than in between.
        self._reconciles = whole and vllm_parsers.reads_own_calls(
            self._parser, reading.request.tool_choice
        )
        self._first = True
        self._spent = 0.0
        self._texts: list[str] = []
        self._ids: list[int] = list(reading.continued)
        self._calls = CallFragments()
        self._contents: list[str] = []
        self._reasoning: list[str] = []
        self._thinks = reading.reasoned
        self._thought = 0

    def push(self, delta: Delta) -> Delta:
        """The delta with its text taken apart, or without it while the parser waits for more."""
        self._feed.add(delta.text, delta.token_ids)
        self._texts.append(delta.text)
        self._ids.extend(delta.token_ids)
        ended = delta.finish is not None
        if not ended and not self._feed.due:
            return replace(delta, text="")
        text, ids = self._feed.take(rest=ended)
        content, reasoning, calls = self._parse(text, ids, ended)
        if self._first and self._reading.continued:
            content, reasoning = self._undelivered(content, reasoning, calls)
        self._first = False
        self._contents.append(content)
        if ended:
            more, rest = self._at_end(delta)
            content, calls = content + more, _joined(calls, rest)
        finish = delta.finish
        if finish is Finish.STOP and not delta.matched_stop and len(self._calls):
            finish = Finish.TOOL_CALLS
        return replace(
            delta,
            text=content,
            reasoning=reasoning if self._reading.includes else "",
            tool_calls=calls,
            finish=finish,
        )

    def reasoning_tokens(self) -> int:
        """Tokens of reasoning so far; vLLM's own count misses what the prompt has begun."""
        if self._parser.reasoning_parser is None:
            return 0
        return vllm_parsers.reasoning_tokens(self._parser, self._ids) or self._thought

    def _parse(self, text: str, ids: list[int], ended: bool) -> tuple[str, str, Calls]:
        reading = self._reading
        began = reading.cpu_time()
        message = self._parser.parse_delta(
            text, ids, reading.request, reading.prompt if self._first else None, finished=ended
        )
        self._spent += reading.cpu_time() - began
        if self._spent > GRACE_S + TOKEN_S * len(self._ids):
            raise ParserTooSlowError
        content = (message.content or "") if message is not None else ""
        reasoning = self._unmarked((message.reasoning or "") if message is not None else "")
        calls = self._calls.add(_deltas(message.tool_calls or ()) if message is not None else ())
        self._reasoning.append(reasoning)
        if self._thinks:
            self._count(text, ids, reasoning)
            self._thinks = not (content or calls) and self._thinks
        return content, reasoning, calls

    def _unmarked(self, reasoning: str) -> str:
        """Without the marker that begins it, which some parsers leave in unless it comes alone."""
        marker = getattr(self._parser.reasoning_parser, "start_token", None)
        if reasoning and marker and not any(self._reasoning):
            before, found, after = reasoning.partition(marker)
            return after if found and not before.strip() else reasoning
        return reasoning

    def _count(self, text: str, ids: list[int], reasoning: str) -> None:
        """Counts tokens of reasoning, markers excluded; exact where they are single tokens."""
        parser = self._parser.reasoning_parser
        begin = getattr(parser, "start_token_id", None)
        end = getattr(parser, "end_token_id", None)
        if end is not None and end in ids:
            self._thinks = False
            ids = ids[: ids.index(end)]
        elif text and not reasoning:
            return  # a marker, which is no text of either kind
        self._thought += sum(token != begin for token in ids)

    def _undelivered(self, content: str, reasoning: str, calls: Calls) -> tuple[str, str]:
        """What is new of a continuation's text, which the parser has read again from its start.

        A continuation tells of text alone: how much was delivered of the rest is known only
        where it cannot be partial.
        """
        reading = self._reading
        if calls:
            raise unsupported(
                "continuation of tools", "an answer cannot be resumed after a tool call has begun"
            )
        if reasoning and reading.includes and not reading.delivered:
            raise unsupported(
                "continuation of reasoning",
                "an answer whose reasoning is returned can be resumed only once its text has begun",
            )
        if not content.startswith(reading.delivered):
            description = "is not the beginning of the text of its token_ids"
            raise invalid([Violation("continuation.text", description)])
        return content[len(reading.delivered) :], ""

    def _at_end(self, delta: Delta) -> tuple[str, Calls]:
        """Text and fragments that the parser still owes."""
        content = ""
        calls: Calls = ()
        if self._reconciles:
            content, calls = self._owed(
                cut=delta.finish is Finish.LENGTH or delta.matched_stop != ""
            )
        if delta.finish is Finish.STOP and not delta.matched_stop:
            calls = _joined(calls, self._calls.complete())
        return content, calls

    def _owed(self, *, cut: bool) -> tuple[str, Calls]:
        """What vLLM's reading of the whole text has beyond what came delta by delta.

        Nothing where the two disagree, for what was sent cannot be taken back.
        """
        reading = self._reading
        try:
            reasoning, content, calls = vllm_parsers.whole_calls(
                reading.new_parser(),
                reading.request,
                "".join(self._texts),
                reasoned=reading.reasoned,
            )
        except Exception:  # noqa: BLE001 - a parser that cannot read the whole: what came stands
            return "", ()
        if reasoning.strip() != "".join(self._reasoning).strip():
            return "", ()
        if not calls:
            told = reading.delivered + "".join(self._contents)
            owes = not len(self._calls) and content.startswith(told)
            return (content[len(told) :] if owes else ""), ()
        owed: list[ToolCallDelta] = []
        for index, call in enumerate(calls):
            told, whole = self._calls.arguments(index), call.function.arguments or ""
            if not self._calls.name(index):
                owed.append(ToolCallDelta(index, call.id or "", call.function.name, whole))
            elif not cut and whole != told and whole.startswith(told):
                owed.append(ToolCallDelta(index, arguments=whole[len(told) :]))
        return "", self._calls.add(owed)


def _deltas(calls: Iterable[Any]) -> list[ToolCallDelta]:
    found = []
    for call in calls:
        function = call.function
        name = "" if function is None else function.name or ""
        arguments = "" if function is None else function.arguments or ""
        found.append(ToolCallDelta(call.index, call.id or "", name, arguments))
    return found


def _joined(calls: Calls, more: Calls) -> Calls:
    """Both, a call's fragments in one."""
    joined = {call.index: call for call in calls}
    for call in more:
        before = joined.get(call.index)
        joined[call.index] = (
            call if before is None else replace(before, arguments=before.arguments + call.arguments)
        )
    return tuple(joined.values())
