"""Ollama's voice: lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.provider_simulator.answers import LABEL, Answer, Reply, Usage
from tools.provider_simulator.voices import (
    Asked,
    Deviation,
    Endpoint,
    Operation,
    Piece,
    Received,
    Refusal,
)
from tools.provider_simulator.wire import NDJSON, compact, ndjson

_CREATED = "2026-01-01T00:00:00Z"
_FINISHES = {"stop": "stop", "length": "length", "tool_calls": "stop"}


class Ollama:
    """See Voice. Streams unless told not to, calls come whole, and nothing is cached."""

    name = "ollama"
    endpoints = (
        Endpoint("/api/chat", Operation.CHAT),
        Endpoint("/api/embed", Operation.EMBED),
    )
    media_type = NDJSON
    greeting = b""
    keepalive = b"\n"
    garbage = b"{\xff\xfe not json\n"

    def read(self, received: Received) -> Asked:
        """See Voice."""
        document = received.document
        model = str(document.get("model", ""))
        if received.operation is Operation.EMBED:
            inputs = document["input"]
            return Asked(
                model,
                False,
                document,
                inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs),
                dimension=document.get("dimensions"),
            )
        return Asked(model, document.get("stream") is not False, document, body=_common(document))

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """See Voice."""
        answer = reply.answers[0]
        for piece in answer.reasoning:
            yield _line(asked, {"content": "", "thinking": piece})
        for piece in answer.text:
            yield _line(asked, {"content": piece})
        for call in _calls(answer):
            yield _line(asked, {"content": "", "tool_calls": [call]})
        counts = _counts(reply.usage)
        for _ in range(1, deviation.usages):
            yield _line(asked, {"content": ""}, counts, output=False)
        if deviation.terminal:
            end = _end(answer, deviation, reply.usage)
            yield _line(asked, {"content": ""}, end, output=False)

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """See Voice."""
        answer = reply.answers[0]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.text)}
        if answer.reasoning:
            message["thinking"] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = _calls(answer)
        end = _end(answer, deviation, reply.usage)
        return {**_head(asked), "message": message, **end}

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """See Voice."""
        return {"model": asked.model, "embeddings": vectors, "prompt_eval_count": tokens}

    def counted(self, tokens: int) -> dict[str, Any]:
        """See Voice. There is no endpoint for it."""
        raise ValueError("this dialect counts nothing")

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """See Voice. An error is a sentence here; a code is part of it."""
        code = f" ({refusal.code})" if refusal.code else ""
        return {"error": f"{LABEL} {refusal.message}{code}"}, {}

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """See Voice."""
        return ndjson({"error": params.get("error", "simulated failure of the model runner")})

    def giant(self, size: int) -> bytes:
        """See Voice."""
        return compact("x" * size) + b"\n"


def _common(document: dict[str, Any]) -> dict[str, Any]:
    """The request in OpenAI's form."""
    messages: list[dict[str, Any]] = []
    for message in document["messages"]:
        # Images stand beside the text; each counts as one part without text.
        parts = [{"text": message.get("content") or ""}]
        content = parts + [{}] * len(message.get("images") or ())
        messages.append({"role": message["role"], "content": content})
    if messages and messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    options = document.get("options") or {}
    body: dict[str, Any] = {
        "model": document.get("model"),
        "messages": messages,
        "max_tokens": options.get("num_predict"),
        "stop": options.get("stop"),
        "tools": document.get("tools"),
    }
    if document.get("think"):
        body["reasoning_effort"] = "high"
    if document.get("format"):
        body["response_format"] = {"type": "json_object"}
    return body


def _calls(answer: Answer) -> list[dict[str, Any]]:
    """Calls have a place and arguments as an object."""
    return [
        {
            "id": call.id,
            "function": {
                "index": index,
                "name": call.name,
                "arguments": json.loads(call.arguments or "{}"),
            },
        }
        for index, call in enumerate(answer.calls)
    ]


def _head(asked: Asked) -> dict[str, Any]:
    return {"model": asked.model, "created_at": _CREATED}


def _counts(usage: Usage) -> dict[str, Any]:
    return {"prompt_eval_count": usage.prompt, "eval_count": usage.completion}


def _end(answer: Answer, deviation: Deviation, usage: Usage) -> dict[str, Any]:
    finish = _FINISHES[answer.finish] if deviation.finish is None else deviation.finish
    end: dict[str, Any] = {"done": True}
    if finish:
        end["done_reason"] = finish
    if deviation.usages:
        end |= {"total_duration": 1, "load_duration": 1, **_counts(usage)}
    return end


def _line(
    asked: Asked,
    message: dict[str, Any],
    more: Mapping[str, Any] | None = None,
    *,
    output: bool = True,
) -> Piece:
    message = {"role": "assistant", **message}
    document = {**_head(asked), "message": message, "done": False, **(more or {})}
    return Piece(ndjson(document), output)
