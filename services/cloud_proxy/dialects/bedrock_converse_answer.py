"""Decodes answers of Bedrock's Converse, streamed and whole.

A stream ends with two events: the stop with its reason, then the metadata with the usage. Without
the stop it is not complete.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from services.cloud_proxy.answer import (
    Delta,
    Ending,
    FailureKind,
    Finish,
    ProviderFailure,
    ProviderUsage,
)
from services.cloud_proxy.dialects import failures
from services.cloud_proxy.dialects.fields import (
    broken,
    count_of,
    list_of,
    object_of,
    parse_object,
    text_of,
)
from services.cloud_proxy.dialects.finishes import finish_of, settled
from services.cloud_proxy.dialects.tool_calls import ToolCalls, arguments_text
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.streams import StreamEvent

_FINISHES: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_MOST_BLOCKS = 512


class _Reasoning:
    """One block of reasoning while its parts arrive."""

    __slots__ = ("redacted", "signature", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.signature: list[str] = []
        self.redacted: list[bytes] = []

    def state(self) -> dict[str, Any] | None:
        """As it is to be replayed; None for a block that is not."""
        if self.redacted:
            return {"redactedContent": base64.b64encode(b"".join(self.redacted)).decode("ascii")}
        if not self.signature:
            # Refused when it comes back; who does not sign does not want it.
            return None
        return {"reasoningText": {"text": "".join(self.text), "signature": "".join(self.signature)}}


class ConverseAnswer:
    """Reads one answer; there is one choice."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._calls = ToolCalls()
        # Blocks of tool use by their own index: which call of ours each is.
        self._uses: dict[int, int] = {}
        self._reasoning: dict[int, _Reasoning] = {}
        self._finish: Finish | None = None
        self._usage: ProviderUsage | None = None
        self._over = False

    @property
    def done(self) -> bool:
        """The metadata came after the stop: nothing follows."""
        return self._over

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated: at the end only."""
        return self._usage

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one event says. Raises ProviderFailure."""
        if event.failed:
            raise _exception(event)
        document = parse_object(event.data)
        if event.name == "contentBlockDelta":
            return self._delta(_index(document), object_of(document.get("delta")))
        if event.name == "contentBlockStart":
            return self._start(_index(document), object_of(document.get("start")))
        if event.name == "messageStop":
            return self._stop(document.get("stopReason"))
        if event.name == "metadata":
            self._usage = read_usage(object_of(document.get("usage"))) or self._usage
            self._over = self._finish is not None
        # messageStart and contentBlockStop say nothing that is not known otherwise.
        return []

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says. Raises ProviderFailure."""
        document = parse_object(body)
        message = object_of(object_of(document.get("output")).get("message"))
        deltas: list[Delta] = []
        for index, block in enumerate(list_of(message.get("content"))):
            deltas += self._block(index, object_of(block))
        self._usage = read_usage(object_of(document.get("usage")))
        deltas += self._stop(document.get("stopReason"))
        return deltas

    def ending(self) -> Ending:
        """The end of a complete answer. Raises ProviderFailure."""
        if self._finish is None:
            raise broken("the provider's stream ended before it was finished")
        finish = settled(self._finish, self._calls)
        states = [found for _, block in sorted(self._reasoning.items()) if (found := block.state())]
        replay = {}
        if states and self._profile.reasoning.replay:
            replay[0] = orjson.dumps(states)
        return Ending({0: finish}, self._usage, replay)

    def _start(self, index: int, start: dict[str, Any]) -> list[Delta]:
        use = start.get("toolUse")
        if not isinstance(use, dict):
            if set(start) - {"toolUse"}:
                raise broken("the provider sent output of an unknown kind")
            return []
        if index in self._uses:
            raise broken("the provider began a content block twice")
        call = self._uses[index] = len(self._calls)
        fragment = self._calls.begin(call, text_of(use.get("toolUseId")), text_of(use.get("name")))
        return [Delta(0, tools=(fragment,))]

    def _delta(self, index: int, delta: dict[str, Any]) -> list[Delta]:
        if "text" in delta:
            text = text_of(delta["text"])
            return [Delta(0, text=text)] if text else []
        if "toolUse" in delta:
            if index not in self._uses:
                raise broken("the provider sent part of a tool call that it had not begun")
            arguments = text_of(object_of(delta["toolUse"]).get("input"))
            if not arguments:
                return []
            return [Delta(0, tools=(self._calls.extend(self._uses[index], arguments),))]
        if "reasoningContent" in delta:
            return self._reason(index, object_of(delta["reasoningContent"]))
        if "citation" in delta:
            # Where a sentence was found: nothing that the contract can carry, and no output.
            return []
        raise broken("the provider sent output of an unknown kind")

    def _reason(self, index: int, part: dict[str, Any]) -> list[Delta]:
        if index not in self._reasoning and len(self._reasoning) >= _MOST_BLOCKS:
            raise broken("the provider sent more reasoning blocks than are sensible")
        block = self._reasoning.setdefault(index, _Reasoning())
        text = text_of(part.get("text"))
        if text:
            block.text.append(text)
        block.signature += [text_of(part["signature"])] if part.get("signature") else []
        if part.get("redactedContent"):
            block.redacted.append(_bytes(part["redactedContent"]))
        return [Delta(0, reasoning=text)] if text else []

    def _block(self, index: int, block: dict[str, Any]) -> list[Delta]:
        """One block of an answer that came whole."""
        if "toolUse" in block:
            use = object_of(block["toolUse"])
            found = self._start(index, {"toolUse": use})
            arguments = arguments_text(use.get("input"))
            if arguments and arguments != "{}":
                found += [Delta(0, tools=(self._calls.extend(self._uses[index], arguments),))]
            return found
        if "reasoningContent" in block:
            content = object_of(block["reasoningContent"])
            return self._reason(index, {**object_of(content.get("reasoningText")), **content})
        return self._delta(index, block)

    def _stop(self, reason: object) -> list[Delta]:
        if reason is None:
            raise broken("the provider ended the answer without a reason")
        self._finish = finish_of(reason, self._profile, _FINISHES)
        closing = self._calls.close()
        return [Delta(0, tools=closing)] if closing else []


def read_usage(stated: dict[str, Any]) -> ProviderUsage | None:
    """Usage; None without its counts. The input tokens exclude those read from the cache and
    those written to it."""
    fresh = count_of(stated.get("inputTokens"))
    completion = count_of(stated.get("outputTokens"))
    if fresh is None or completion is None:
        return None
    cached = count_of(stated.get("cacheReadInputTokens")) or 0
    written = count_of(stated.get("cacheWriteInputTokens")) or 0
    prompt = count_of(fresh + cached + written) or 0
    return ProviderUsage(prompt, min(cached, prompt), completion, 0, min(written, prompt - cached))


def _bytes(value: object) -> bytes:
    """Bytes as JSON holds them: each part is encoded by itself, so that parts cannot be joined."""
    try:
        return base64.b64decode(text_of(value), validate=True)
    except (binascii.Error, ValueError):
        raise broken("the provider sent redacted reasoning that is not base64") from None


def _index(document: dict[str, Any]) -> int:
    index = document.get("contentBlockIndex")
    if isinstance(index, bool) or not isinstance(index, int):
        raise broken("the provider sent a content block without an index")
    return index


def _exception(event: StreamEvent) -> ProviderFailure:
    """An exception frame, inside a response with status 200."""
    name = event.name
    if name == "validationException":
        try:
            message = text_of(object_of(orjson.loads(event.data)).get("message"))
        except orjson.JSONDecodeError:
            message = ""
        failure = failures.refusal(400, message=message, code=name)
        if failure.kind in (FailureKind.REFUSED_REQUEST, FailureKind.TOO_LONG):
            return failure
    return failures.in_band(code=name, busy=name == "throttlingException")
