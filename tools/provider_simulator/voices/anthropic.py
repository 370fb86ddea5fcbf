"""Anthropic's voice: the messages API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.provider_simulator.answers import LABEL, Answer, Call, Reply, Usage, signature
from tools.provider_simulator.voices import (
    Asked,
    Deviation,
    Endpoint,
    Operation,
    Piece,
    Received,
    Refusal,
)
from tools.provider_simulator.wire import SSE, sse

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_FINISHES = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Anthropic:
    """See Voice. Its input tokens exclude cached ones, and its blocks come one after the other."""

    name = "anthropic"
    endpoints = (
        Endpoint("/{prefix:.*}v1/messages", Operation.CHAT),
        Endpoint("/{prefix:.*}v1/messages/count_tokens", Operation.COUNT),
    )
    media_type = SSE
    greeting = b""
    keepalive = sse({"type": "ping"}, "ping")
    garbage = b"event: content_block_delta\ndata: {\xff\xfe not json\n\n"

    def read(self, received: Received) -> Asked:
        """See Voice."""
        document = received.document
        if "anthropic-version" not in received.headers:
            raise ValueError("anthropic-version: header is required")
        if received.operation is Operation.CHAT and "max_tokens" not in document:
            raise ValueError("max_tokens: Field required")
        model = str(document.get("model", ""))
        return Asked(model, bool(document.get("stream")), document, body=_common(document))

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """See Voice."""
        answer = reply.answers[0]
        stated = _input(reply.usage) | {"output_tokens": 1} if deviation.usages else {}
        message = _message(asked) | {"content": [], "stop_reason": None, "usage": stated}
        yield _event("message_start", message=message)
        yield _event("ping")
        for index, block in enumerate(_blocks(answer)):
            yield from block.events(index)
        cumulative = _usage(reply.usage)
        for _ in range(1, deviation.usages):
            nothing = {"stop_reason": None, "stop_sequence": None}
            yield _event("message_delta", delta=nothing, usage=cumulative)
        end = _end(answer, deviation)
        stated = cumulative if deviation.usages else {}
        yield _event("message_delta", delta=end, usage=stated)
        if deviation.terminal:
            yield _event("message_stop")

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """See Voice."""
        answer = reply.answers[0]
        content = [block.document() for block in _blocks(answer)]
        document = _message(asked) | {"content": content} | _end(answer, deviation)
        if deviation.usages:
            document["usage"] = _usage(reply.usage)
        return document

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """See Voice. There is no endpoint for it."""
        raise ValueError("this dialect has no embeddings")

    def counted(self, tokens: int) -> dict[str, Any]:
        """See Voice."""
        return {"input_tokens": tokens}

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """See Voice."""
        kind = refusal.code or _ERRORS.get(
            refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error"
        )
        error = {"type": kind, "message": f"{LABEL} {refusal.message}"}
        document = {"type": "error", "error": error, "request_id": "req_simulator"}
        return document, {"request-id": "req_simulator"}

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """See Voice."""
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return sse({"type": "error", "error": params.get("error", error)}, "error")

    def giant(self, size: int) -> bytes:
        """See Voice."""
        return b"event: content_block_delta\ndata: " + b"x" * size + b"\n\n"


class _Thinking:
    """A block of reasoning."""

    def __init__(self, pieces: tuple[str, ...]) -> None:
        self._pieces = pieces

    def document(self) -> dict[str, Any]:
        sealed = signature(self._pieces)
        return {"type": "thinking", "thinking": "".join(self._pieces), "signature": sealed}

    def events(self, index: int) -> Iterator[Piece]:
        yield _start(index, {"type": "thinking", "thinking": "", "signature": ""})
        for piece in self._pieces:
            yield _delta(index, {"type": "thinking_delta", "thinking": piece})
        sealed = {"type": "signature_delta", "signature": signature(self._pieces)}
        yield _delta(index, sealed, output=False)
        yield _event("content_block_stop", index=index)


class _Text:
    """A block of text."""

    def __init__(self, pieces: tuple[str, ...]) -> None:
        self._pieces = pieces

    def document(self) -> dict[str, Any]:
        return {"type": "text", "text": "".join(self._pieces)}

    def events(self, index: int) -> Iterator[Piece]:
        yield _start(index, {"type": "text", "text": ""})
        for piece in self._pieces:
            yield _delta(index, {"type": "text_delta", "text": piece})
        yield _event("content_block_stop", index=index)


class _ToolUse:
    """A block with one call; without arguments its one fragment is empty."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def document(self) -> dict[str, Any]:
        return self._head() | {"input": json.loads(self._call.arguments or "{}")}

    def events(self, index: int) -> Iterator[Piece]:
        yield _start(index, self._head() | {"input": {}}, output=True)
        text = self._call.arguments
        for start in range(0, max(len(text), 1), 7):
            part = {"type": "input_json_delta", "partial_json": text[start : start + 7]}
            yield _delta(index, part)
        yield _event("content_block_stop", index=index)

    def _head(self) -> dict[str, Any]:
        return {"type": "tool_use", "id": self._call.id, "name": self._call.name}


def _blocks(answer: Answer) -> list[_Thinking | _Text | _ToolUse]:
    found: list[_Thinking | _Text | _ToolUse] = []
    if answer.reasoning:
        found.append(_Thinking(answer.reasoning))
    if answer.text:
        found.append(_Text(answer.text))
    return found + [_ToolUse(call) for call in answer.calls]


def _common(document: dict[str, Any]) -> dict[str, Any]:
    """The request in OpenAI's form."""
    messages = [
        {"role": m["role"], "content": _content(m["content"])} for m in document["messages"]
    ]
    if messages and messages[-1]["role"] == "assistant":
        # The answer goes on from it.
        messages[-1]["prefix"] = True
    if document.get("system"):
        messages.insert(0, {"role": "system", "content": _content(document["system"])})
    body: dict[str, Any] = {
        "model": document.get("model"),
        "messages": messages,
        "max_tokens": document.get("max_tokens"),
        "stop": document.get("stop_sequences"),
        "tools": [{"function": {"name": t["name"]}} for t in document.get("tools") or ()],
        "tool_choice": _choice(document.get("tool_choice") or {}),
    }
    if (document.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
        body["reasoning_effort"] = "high"
    if ((document.get("output_config") or {}).get("format") or {}).get("type") == "json_schema":
        body["response_format"] = {"type": "json_schema"}
    return body


def _content(content: Any) -> Any:
    """Text and images; what else stands in a message is no part of a prompt here."""
    if isinstance(content, str):
        return content
    return [
        {"text": part["text"]} if part["type"] == "text" else {}
        for part in content
        if part["type"] in ("text", "image")
    ] + [
        part
        for result in content
        if result["type"] == "tool_result"
        for part in _parts(_content(result.get("content") or ""))
    ]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else content


def _choice(choice: dict[str, Any]) -> Any:
    if choice.get("type") == "tool":
        return {"function": {"name": choice["name"]}}
    return {"any": "required", "none": "none"}.get(choice.get("type", ""), "auto")


def _message(asked: Asked) -> dict[str, Any]:
    return {
        "id": "msg_simulator",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "stop_sequence": None,
    }


def _end(answer: Answer, deviation: Deviation) -> dict[str, Any]:
    matched = answer.matched or None
    reason = "stop_sequence" if matched else _FINISHES[answer.finish]
    if deviation.finish is not None:
        reason = deviation.finish
    return {"stop_reason": reason or None, "stop_sequence": matched}


def _input(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return _input(usage) | {"output_tokens": usage.completion}


def _start(index: int, block: dict[str, Any], *, output: bool = False) -> Piece:
    return _event("content_block_start", output=output, index=index, content_block=block)


def _delta(index: int, delta: dict[str, Any], *, output: bool = True) -> Piece:
    return _event("content_block_delta", output=output, index=index, delta=delta)


def _event(kind: str, *, output: bool = False, **fields: Any) -> Piece:
    return Piece(sse({"type": kind, **fields}, kind), output)
