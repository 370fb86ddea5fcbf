"""Gemini's voice: generateContent and its kin."""

from __future__ import annotations

import json
import re
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

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_CALLERS = ("args", "response", "parameters", "parametersJsonSchema")
# Below any prefix: Vertex AI has the same endpoints elsewhere.
_AT = "/{prefix:.*}models/{model:.+}"


class Gemini:
    """See Voice. Usage is a running total on every chunk, calls come whole, and the only terminal
    marker is the finish reason."""

    name = "gemini"
    endpoints = (
        Endpoint(f"{_AT}:generateContent", Operation.CHAT),
        Endpoint(f"{_AT}:streamGenerateContent", Operation.CHAT, streams=True),
        Endpoint(f"{_AT}:countTokens", Operation.COUNT),
        Endpoint(f"{_AT}:batchEmbedContents", Operation.EMBED),
    )
    media_type = SSE
    greeting = b""
    keepalive = b": keep-alive\n\n"
    garbage = b"data: {\xff\xfe not json\n\n"

    def read(self, received: Received) -> Asked:
        """See Voice."""
        document = _camel(received.document)
        if received.streams and received.query.get("alt") != "sse":
            raise ValueError("the simulator streams with alt=sse only")
        if received.operation is Operation.EMBED:
            requests = document["requests"]
            return Asked(
                received.model,
                False,
                document,
                inputs=tuple(_text(one["content"]["parts"]) for one in requests),
                dimension=requests[0].get("outputDimensionality") if requests else None,
            )
        wanted = document.get("generateContentRequest", document)
        body = _common(received.model, wanted)
        return Asked(received.model, received.streams, wanted, body=body)

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """See Voice."""
        said = thought = 0
        usage = reply.usage
        for number, answer in enumerate(reply.answers):
            for part, tokens, thinks in _parts(asked, answer):
                said, thought = said + tokens * (not thinks), thought + tokens * thinks
                so_far = _usage(usage, said, thought) if deviation.usages else {}
                candidate = {"content": {"parts": [part], "role": "model"}, "index": number}
                yield _chunk(asked, so_far, [candidate], output=bool(part.get("text", part)))
            total = _usage(usage) if deviation.usages else {}
            for _ in range(1, deviation.usages):
                yield _chunk(asked, total, [])
            end = {"content": {"parts": [{"text": ""}], "role": "model"}, "index": number}
            finish = _finish(answer, deviation)
            if finish and deviation.terminal:
                yield _chunk(asked, total, [end | {"finishReason": finish}])
            else:
                yield _chunk(asked, total, [end])

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """See Voice."""
        candidates = []
        for number, answer in enumerate(reply.answers):
            parts = _joined([part for part, _, _ in _parts(asked, answer)])
            candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
            finish = _finish(answer, deviation)
            if finish:
                candidate["finishReason"] = finish
            candidates.append(candidate | {"index": number})
        usage = _usage(reply.usage) if deviation.usages else {}
        return _document(asked, usage, candidates)

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """See Voice. It states no usage."""
        return {"embeddings": [{"values": vector} for vector in vectors]}

    def counted(self, tokens: int) -> dict[str, Any]:
        """See Voice."""
        details = [{"modality": "TEXT", "tokenCount": tokens}]
        return {"totalTokens": tokens, "promptTokensDetails": details}

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """See Voice. A key that is not known is a bad request here."""
        status, details = refusal.status, []
        if refusal.code == "invalid_api_key":
            status = 400
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                }
            )
        if refusal.retry_in is not None:
            delay = f"{refusal.retry_in:g}s"
            details.append(
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
            )
        error: dict[str, Any] = {
            "code": status,
            "message": f"{LABEL} {refusal.message}",
            "status": _STATUSES.get(status, "UNKNOWN"),
        }
        if refusal.code and refusal.code != "invalid_api_key":
            error["status"] = refusal.code
        if details:
            error["details"] = details
        return {"error": error}, {}

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """See Voice."""
        error = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
        return sse({"error": params.get("error", error)})

    def giant(self, size: int) -> bytes:
        """See Voice."""
        return b"data: " + b"x" * size + b"\n\n"


def _camel(value: Any) -> Any:
    """The document with names as the API states them; protobuf's JSON takes snake_case as well,
    and Google's SDK sends some so. What belongs to the caller's tools is left as it is."""
    if isinstance(value, list):
        return [_camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"_([a-z])", lambda m: m[1].upper(), name): v for name, v in value.items()}
    return {name: v if name in _CALLERS else _camel(v) for name, v in named.items()}


def _common(model: str, document: dict[str, Any]) -> dict[str, Any]:
    """The request in OpenAI's form."""
    messages: list[dict[str, Any]] = []
    for content in document["contents"]:
        role = "assistant" if content.get("role") == "model" else "user"
        messages.append({"role": role, "content": _content(content["parts"])})
    if messages and messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    if document.get("systemInstruction"):
        parts = _content(document["systemInstruction"]["parts"])
        messages.insert(0, {"role": "system", "content": parts})
    settings = document.get("generationConfig") or {}
    calling = (document.get("toolConfig") or {}).get("functionCallingConfig") or {}
    declared = [
        tool for tools in document.get("tools") or () for tool in tools["functionDeclarations"]
    ]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "n": settings.get("candidateCount"),
        "max_tokens": settings.get("maxOutputTokens"),
        "stop": settings.get("stopSequences"),
        "tools": [{"function": {"name": tool["name"]}} for tool in declared],
        "tool_choice": _choice(calling),
    }
    thinking = settings.get("thinkingConfig") or {}
    if thinking.get("thinkingBudget", 0) or thinking.get("thinkingLevel"):
        body["reasoning_effort"] = "high"
    if settings.get("responseMimeType") == "application/json":
        body["response_format"] = {"type": "json_object"}
    return body


def _content(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text, images, and results of calls as their JSON; thoughts and calls are not repeated."""
    found = []
    for part in parts:
        if "text" in part and not part.get("thought"):
            found.append({"text": part["text"]})
        elif "inlineData" in part or "fileData" in part:
            found.append({})
        elif "functionResponse" in part:
            found.append({"text": json.dumps(part["functionResponse"]["response"])})
    return found


def _text(parts: list[dict[str, Any]]) -> str:
    return " ".join(part["text"] for part in parts)


def _choice(calling: dict[str, Any]) -> Any:
    names = calling.get("allowedFunctionNames") or []
    if calling.get("mode") == "ANY" and len(names) == 1:
        return {"function": {"name": names[0]}}
    return {"ANY": "required", "NONE": "none"}.get(calling.get("mode", ""), "auto")


def _parts(asked: Asked, answer: Answer) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """Parts with their tokens, and whether these count as thoughts.

    Thoughts are shown on demand only. What follows them carries their signature: the first call,
    else an empty part after the text.
    """
    settings = asked.document.get("generationConfig") or {}
    shown = (settings.get("thinkingConfig") or {}).get("includeThoughts")
    for piece in answer.reasoning:
        if shown:
            yield {"text": piece, "thought": True}, 1, True
    for piece in answer.text:
        yield {"text": piece}, 1, False
    sealed = {"thoughtSignature": signature(answer.reasoning)} if answer.reasoning else {}
    for number, call in enumerate(answer.calls):
        part = {"functionCall": _call(call)} | (sealed if number == 0 else {})
        yield part, len(call.arguments.split()), False
    if sealed and not answer.calls:
        yield {"text": ""} | sealed, 0, False


def _call(call: Call) -> dict[str, Any]:
    called: dict[str, Any] = {"id": call.id, "name": call.name}
    if call.arguments:
        called["args"] = json.loads(call.arguments)
    return called


def _joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring texts of one kind as one part, as an answer that does not stream has them."""
    found: list[dict[str, Any]] = []
    for part in parts:
        last = found[-1] if found else {}
        plain = "text" in part and "thoughtSignature" not in part
        if plain and "text" in last and last.get("thought") == part.get("thought"):
            found[-1] = last | {"text": last["text"] + part["text"]}
        else:
            found.append(part)
    return found


def _finish(answer: Answer, deviation: Deviation) -> str:
    return _FINISHES[answer.finish] if deviation.finish is None else deviation.finish


def _usage(usage: Usage, said: int | None = None, thought: int | None = None) -> dict[str, Any]:
    """All of it, or what was spent so far. Candidates and thoughts are counted apart."""
    candidates = usage.completion - usage.reasoning if said is None else said
    thoughts = usage.reasoning if thought is None else thought
    stated = {"promptTokenCount": usage.prompt, "candidatesTokenCount": candidates}
    if thoughts:
        stated["thoughtsTokenCount"] = thoughts
    if usage.cached:
        stated["cachedContentTokenCount"] = usage.cached
    return stated | {"totalTokenCount": usage.prompt + candidates + thoughts}


def _document(
    asked: Asked, usage: dict[str, Any], candidates: list[dict[str, Any]]
) -> dict[str, Any]:
    document: dict[str, Any] = {"candidates": candidates} if candidates else {}
    if usage:
        document["usageMetadata"] = usage
    return document | {"modelVersion": asked.model, "responseId": "simulator"}


def _chunk(
    asked: Asked, usage: dict[str, Any], candidates: list[dict[str, Any]], *, output: bool = False
) -> Piece:
    return Piece(sse(_document(asked, usage, candidates)), output)
