"""OpenAI's voice: chat completions and embeddings, as OpenAI and most providers speak them."""

from __future__ import annotations

import base64
import struct
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
from tools.provider_simulator.wire import SSE, sse

_CREATED = 1_767_225_600  # the same on every run: answers are functions of the request


class OpenAiChat:
    """See Voice. It has several choices, and reasons in `reasoning_content` as DeepSeek does."""

    name = "openai_chat"
    # Below any prefix, since each provider of this dialect has its own.
    endpoints = (
        Endpoint("/{prefix:.*}chat/completions", Operation.CHAT),
        Endpoint("/{prefix:.*}embeddings", Operation.EMBED),
        Endpoint("/{prefix:.*}tokenizers/estimate-token-count", Operation.COUNT),
        Endpoint("/{prefix:.*}tokenize", Operation.COUNT),
    )
    media_type = SSE
    greeting = b": simulator\n\n"
    keepalive = b": keep-alive\n\n"
    garbage = b"data: {\xff\xfe not json\n\n"

    def read(self, received: Received) -> Asked:
        """See Voice."""
        document = received.document
        model, stream = str(document.get("model", "")), bool(document.get("stream"))
        if received.operation is not Operation.EMBED:
            return Asked(model, stream, document, body=document)
        inputs = document["input"]
        return Asked(
            model,
            False,
            document,
            inputs=(inputs,) if isinstance(inputs, str) else tuple(str(one) for one in inputs),
            dimension=document.get("dimensions"),
        )

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """See Voice."""
        for number, answer in enumerate(reply.answers):
            first = {"role": "assistant", "content": None if answer.calls else ""}
            yield _delta(asked, number, first, output=False)
            for delta in _deltas(answer):
                yield _delta(asked, number, delta)
            finish = answer.finish if deviation.finish is None else deviation.finish
            if finish:
                yield _delta(asked, number, {}, finish, output=False)
        if (asked.document.get("stream_options") or {}).get("include_usage"):
            for _ in range(deviation.usages):
                yield _chunk(asked, {"choices": [], "usage": _usage(reply.usage)})
        if deviation.terminal:
            yield Piece(b"data: [DONE]\n\n")

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """See Voice."""
        choices = []
        for number, one in enumerate(reply.answers):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(one.text) or None}
            if one.reasoning:
                message["reasoning_content"] = "".join(one.reasoning)
            if one.calls:
                message["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in one.calls
                ]
            finish = one.finish if deviation.finish is None else deviation.finish
            choices.append({"index": number, "message": message, "finish_reason": finish or None})
        document = {**_head(asked), "object": "chat.completion", "choices": choices}
        if deviation.usages:
            document["usage"] = _usage(reply.usage)
        return document

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """See Voice."""
        packed = asked.document.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": _packed(v) if packed else v}
            for n, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": asked.model, "data": data, "usage": usage}

    def counted(self, tokens: int) -> dict[str, Any]:
        """See Voice. As Moonshot and vLLM answer; OpenAI itself counts nothing."""
        return {"data": {"total_tokens": tokens}, "count": tokens}

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """See Voice."""
        code = refusal.code or "simulated"
        error = {
            "message": f"{LABEL} {refusal.message}",
            "type": code,
            "code": code,
            "param": refusal.param or None,
        }
        return {"error": error}, {}

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """See Voice. A chunk with an error in it, as OpenRouter sends."""
        error = {"message": "simulated failure", "type": "server_error", "code": 500}
        return sse({"error": params.get("error", error)})

    def giant(self, size: int) -> bytes:
        """See Voice."""
        return b"data: " + b"x" * size + b"\n\n"


def _deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    for piece in answer.reasoning:
        yield {"content": None, "reasoning_content": piece}
    for piece in answer.text:
        yield {"content": piece}
    for index, call in enumerate(answer.calls):
        function = {"name": call.name, "arguments": ""}
        yield {
            "tool_calls": [
                {"index": index, "id": call.id, "type": "function", "function": function}
            ]
        }
    # Interleaved on purpose: fragments of parallel calls must be told apart by their index.
    longest = max((len(call.arguments) for call in answer.calls), default=0)
    for start in range(0, longest, 7):
        for index, call in enumerate(answer.calls):
            part = call.arguments[start : start + 7]
            if part:
                yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


def _delta(
    asked: Asked,
    number: int,
    delta: dict[str, Any],
    finish: str | None = None,
    *,
    output: bool = True,
) -> Piece:
    choice = {"index": number, "delta": delta, "finish_reason": finish}
    return _chunk(asked, {"choices": [choice], "usage": None}, output=output)


def _chunk(asked: Asked, document: dict[str, Any], *, output: bool = False) -> Piece:
    return Piece(sse({**_head(asked), "object": "chat.completion.chunk", **document}), output)


def _head(asked: Asked) -> dict[str, Any]:
    return {"id": "chatcmpl-simulator", "created": _CREATED, "model": asked.model}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _packed(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
