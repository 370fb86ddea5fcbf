"""Reads requests to Bedrock into the common form. Pure."""

from __future__ import annotations

import json
from typing import Any


def common(model: str, document: dict[str, Any]) -> dict[str, Any]:
    """A Converse request in OpenAI's form."""
    messages: list[dict[str, Any]] = [
        {"role": m["role"], "content": _content(m["content"])} for m in document["messages"]
    ]
    if messages and messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    if document.get("system"):
        messages.insert(0, {"role": "system", "content": _content(document["system"])})
    settings = document.get("inferenceConfig") or {}
    tools = document.get("toolConfig") or {}
    names = [tool["toolSpec"]["name"] for tool in tools.get("tools") or () if "toolSpec" in tool]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": settings.get("maxTokens"),
        "stop": settings.get("stopSequences"),
        "tools": [{"function": {"name": name}} for name in names],
        "tool_choice": _choice(tools.get("toolChoice") or {}),
    }
    more = document.get("additionalModelRequestFields") or {}
    thinks = (more.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    if thinks or more.get("reasoning_config") or more.get("reasoning_effort"):
        body["reasoning_effort"] = "high"
    if (document.get("outputConfig") or {}).get("textFormat"):
        body["response_format"] = {"type": "json_schema"}
    return body


def embed_inputs(document: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    """The texts of a Titan or a Cohere request for vectors, and the dimension asked for.

    Raises ValueError for the request of any other model.
    """
    if "inputText" in document:
        return (document["inputText"],), document.get("dimensions")
    if "texts" in document:
        return tuple(document["texts"]), document.get("output_dimension")
    raise ValueError("the simulator invokes embedding models of Titan and Cohere only")


def _content(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text, images, and results of calls; reasoning and calls are not repeated."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        if "text" in block:
            found.append({"text": block["text"]})
        elif "image" in block:
            found.append({})
        elif "toolResult" in block:
            for part in block["toolResult"]["content"]:
                text = part["text"] if "text" in part else json.dumps(part.get("json"))
                found.append({"text": text})
    return found


def _choice(choice: dict[str, Any]) -> Any:
    if "tool" in choice:
        return {"function": {"name": choice["tool"]["name"]}}
    return "required" if "any" in choice else "auto"
