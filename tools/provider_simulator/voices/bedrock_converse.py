"""Bedrock's voice: Converse, with event-stream frames, and what InvokeModel embeds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.provider_simulator.answers import LABEL, Answer, Reply, Usage, signature
from tools.provider_simulator.voices import (
    Asked,
    Deviation,
    Endpoint,
    Operation,
    Piece,
    Received,
    Refusal,
)
from tools.provider_simulator.voices.bedrock_requests import common, embed_inputs
from tools.provider_simulator.wire import EVENT_STREAM, compact, frame

_ERRORS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
}
_FINISHES = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_JSON = {":content-type": "application/json", ":message-type": "event"}


class BedrockConverse:
    """See Voice. Its input tokens exclude cached ones; nothing is sent while it has nothing to
    say. A stream ends with two events, the stop and the usage."""

    name = "bedrock_converse"
    endpoints = (
        Endpoint("/model/{model:.+}/converse", Operation.CHAT),
        Endpoint("/model/{model:.+}/converse-stream", Operation.CHAT, streams=True),
        Endpoint("/model/{model:.+}/invoke", Operation.EMBED),
        Endpoint("/model/{model:.+}/count-tokens", Operation.COUNT),
    )
    media_type = EVENT_STREAM
    greeting = b""
    keepalive = b""
    # A proper frame but for its last checksum.
    garbage = frame({":message-type": "event", ":event-type": "contentBlockDelta"}, b"{}")[:-4] + (
        b"\xff\xfe\xff\xfe"
    )

    def read(self, received: Received) -> Asked:
        """See Voice."""
        document = received.document
        if received.operation is Operation.EMBED:
            inputs, dimension = embed_inputs(document)
            return Asked(received.model, False, document, inputs=inputs, dimension=dimension)
        if received.operation is Operation.COUNT:
            document = _counted_request(document)
        body = common(received.model, document)
        return Asked(received.model, received.streams, document, body=body)

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """See Voice."""
        answer = reply.answers[0]
        yield _event("messageStart", {"role": "assistant"})
        yield from _blocks(answer)
        if not deviation.terminal:
            return
        finish = _finish(answer, deviation)
        yield _event("messageStop", {"stopReason": finish} if finish else {})
        for _ in range(deviation.usages):
            usage = {"usage": _usage(reply.usage), "metrics": {"latencyMs": 1}}
            yield _event("metadata", usage)

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """See Voice."""
        answer = reply.answers[0]
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            thought = {"text": "".join(answer.reasoning), "signature": signature(answer.reasoning)}
            content.append({"reasoningContent": {"reasoningText": thought}})
        if answer.text:
            content.append({"text": "".join(answer.text)})
        for call in answer.calls:
            arguments = json.loads(call.arguments or "{}")
            use = {"toolUseId": call.id, "name": call.name, "input": arguments}
            content.append({"toolUse": use})
        document: dict[str, Any] = {
            "output": {"message": {"role": "assistant", "content": content}},
            "metrics": {"latencyMs": 1},
        }
        finish = _finish(answer, deviation)
        if finish:
            document["stopReason"] = finish
        if deviation.usages:
            document["usage"] = _usage(reply.usage)
        return document

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """See Voice. As Titan answers, or Cohere when it was asked in Cohere's form."""
        if "inputText" in asked.document:
            return {"embedding": vectors[0], "inputTextTokenCount": tokens}
        if "embedding_types" in asked.document:
            return {"id": "simulator", "embeddings": {"float": vectors}}
        return {"id": "simulator", "embeddings": vectors, "response_type": "embeddings_floats"}

    def counted(self, tokens: int) -> dict[str, Any]:
        """See Voice."""
        return {"inputTokens": tokens}

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """See Voice. The kind of an error stands in a header."""
        default = "ServiceUnavailableException" if refusal.status > 500 else "ValidationException"
        kind = refusal.code or _ERRORS.get(refusal.status, default)
        headers = {"x-amzn-errortype": kind, "x-amzn-requestid": "simulator"}
        return {"message": f"{LABEL} {refusal.message}"}, headers

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """See Voice. A frame with an exception, by default the one of a model that broke off."""
        error = params.get("error") or {}
        headers = {
            ":exception-type": str(error.get("type", "modelStreamErrorException")),
            ":content-type": "application/json",
            ":message-type": "exception",
        }
        return frame(headers, compact({"message": error.get("message", "simulated failure")}))

    def giant(self, size: int) -> bytes:
        """See Voice."""
        return frame({":event-type": "contentBlockDelta", **_JSON}, b"x" * size)


def _blocks(answer: Answer) -> Iterator[Piece]:
    """Reasoning, text, calls; only calls are announced by a start, as Bedrock does it."""
    index = 0
    if answer.reasoning:
        for piece in answer.reasoning:
            yield _delta(index, {"reasoningContent": {"text": piece}})
        sealed = {"reasoningContent": {"signature": signature(answer.reasoning)}}
        yield _delta(index, sealed, output=False)
        yield _event("contentBlockStop", {"contentBlockIndex": index})
        index += 1
    if answer.text:
        for piece in answer.text:
            yield _delta(index, {"text": piece})
        yield _event("contentBlockStop", {"contentBlockIndex": index})
        index += 1
    for call in answer.calls:
        start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
        begun = {"start": start, "contentBlockIndex": index}
        yield _event("contentBlockStart", begun, output=True)
        for at in range(0, len(call.arguments), 7):
            yield _delta(index, {"toolUse": {"input": call.arguments[at : at + 7]}})
        yield _event("contentBlockStop", {"contentBlockIndex": index})
        index += 1


def _counted_request(document: dict[str, Any]) -> dict[str, Any]:
    """The Converse request within a request to count. Raises KeyError for another kind."""
    wanted = document["input"]
    if "invokeModel" in wanted:
        body: dict[str, Any] = json.loads(base64.b64decode(wanted["invokeModel"]["body"]))
        return {"messages": [{"role": "user", "content": [{"text": json.dumps(body)}]}]}
    found: dict[str, Any] = wanted["converse"]
    return found


def _finish(answer: Answer, deviation: Deviation) -> str:
    if deviation.finish is not None:
        return deviation.finish
    return "stop_sequence" if answer.matched else _FINISHES[answer.finish]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "inputTokens": usage.prompt - usage.cached,
        "outputTokens": usage.completion,
        "totalTokens": usage.prompt + usage.completion,
        "cacheReadInputTokens": usage.cached,
        "cacheWriteInputTokens": 0,
    }


def _delta(index: int, delta: dict[str, Any], *, output: bool = True) -> Piece:
    return _event("contentBlockDelta", {"delta": delta, "contentBlockIndex": index}, output=output)


def _event(kind: str, document: dict[str, Any], *, output: bool = False) -> Piece:
    # Padding of a varying length, as the real service adds it.
    document = document | {"p": "abcdefghij"[: 1 + len(kind) % 10]}
    return Piece(frame({":event-type": kind, **_JSON}, compact(document)), output)
