"""Encodes a GenerateRequest as Bedrock's Converse wants it, as the profile allows.

Answers are decoded elsewhere.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest, Framing
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
    append_turn,
    arguments,
    check_response_format,
    check_tool_choice,
    merge,
    path_for,
    reasoning,
    refuse_late_system,
    refuse_raw_prompts,
    require,
    sampling,
    schema,
    serialised,
    unsupported,
)

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}

Blocks = list[dict[str, Any]]


def encode(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> EncodedRequest:
    """The whole request. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    body = prompt(request, route)
    parameters, dropped = sampling(request, route, max_tokens)
    if parameters:
        body["inferenceConfig"] = parameters
    merge(body, reasoning(request, route))
    merge(body, route.profile.body)
    paths = route.profile.paths
    return EncodedRequest(
        path=path_for(paths.stream if route.model.streaming else paths.chat, route),
        body=serialised(body),
        headers=JSON_HEADERS,
        framing=Framing.AWS_EVENT_STREAM if route.model.streaming else None,
        dropped=dropped,
    )


def prompt(request: pb.GenerateRequest, route: Route) -> dict[str, Any]:
    """All that makes up the prompt: messages, system text and tools. Raises Fault."""
    refuse_raw_prompts(request, route)
    if request.HasField("continuation"):
        raise unsupported("continuation", f"{route.name} cannot go on with an assistant's turn")
    check_response_format(request.response_format, route)
    system: Blocks = []
    turns: Blocks = []
    for number, message in enumerate(request.messages):
        at = f"messages[{number}]"
        if message.role == pb.ROLE_SYSTEM:
            refuse_late_system(turns, at, route)
            system += _content(message, at, route)
        elif message.role == pb.ROLE_ASSISTANT:
            append_turn(turns, "assistant", _assistant(message, at, route))
        elif message.role == pb.ROLE_TOOL:
            append_turn(turns, "user", [_result(message, at, route)])
        else:
            append_turn(turns, "user", _content(message, at, route))
    if any("image" in block for block in system):
        raise unsupported("images", f"{route.name} takes system messages of text only")
    if not turns:
        raise unsupported("messages", f"{route.name} needs more than system messages")
    body: dict[str, Any] = {"messages": turns}
    if system:
        body["system"] = system
    _tools(request, route, body)
    return body


def _content(message: pb.Message, at: str, route: Route) -> Blocks:
    blocks: Blocks = []
    for number, part in enumerate(message.content):
        if part.WhichOneof("part") == "image":
            blocks.append(_image(part.image, f"{at}.content[{number}]", route))
        elif part.text.strip():
            # Blank text blocks are refused.
            blocks.append({"text": part.text})
    return blocks


def _image(image: pb.Image, at: str, route: Route) -> dict[str, Any]:
    require("images", "images", route, f"does not see images ({at})")
    if image.WhichOneof("source") == "uri":
        raise unsupported("images", f"{route.profile.name} takes images as bytes only ({at})")
    if image.media_type not in _IMAGES:
        raise unsupported("images", f"{route.name} takes {', '.join(_IMAGES)} only ({at})")
    data = base64.b64encode(image.data).decode("ascii")
    return {"image": {"format": _IMAGES[image.media_type], "source": {"bytes": data}}}


def _assistant(message: pb.Message, at: str, route: Route) -> Blocks:
    blocks = _reasoning_state(message, at, route)
    blocks += _content(message, at, route)
    for number, call in enumerate(message.tool_calls):
        given = arguments(call.arguments, f"{at}.tool_calls[{number}].arguments")
        blocks.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": given}})
    return blocks


def _result(message: pb.Message, at: str, route: Route) -> dict[str, Any]:
    content = _content(message, at, route) or [{"text": "(empty)"}]
    return {"toolResult": {"toolUseId": message.tool_call_id, "content": content}}


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    require("tools", "tools", route, "cannot call tools")
    wish = check_tool_choice(request.tool_choice, route)
    if wish == "none":
        if any(m.tool_calls or m.tool_call_id for m in request.messages):
            raise unsupported(
                "tool_choice", f"{route.name} cannot be kept from tools that were used before"
            )
        # Tools that are not named cannot be called.
        return
    tools = []
    for number, tool in enumerate(request.tools):
        text = tool.parameters_json_schema or '{"type":"object"}'
        found = schema(text, f"tools[{number}].parameters_json_schema")
        spec: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": found}}
        if tool.description:
            spec["description"] = tool.description
        tools.append({"toolSpec": spec})
    config: dict[str, Any] = {"tools": tools}
    if wish == "named":
        config["toolChoice"] = {"tool": {"name": request.tool_choice.name}}
    elif wish == "required":
        config["toolChoice"] = {"any": {}}
    body["toolConfig"] = config


def _reasoning_state(message: pb.Message, at: str, route: Route) -> Blocks:
    """The reasoning of this turn, unchanged; it must come before what it led to."""
    blocks: Blocks = []
    if route.profile.reasoning.replay:
        for number, state in enumerate(message.reasoning_state):
            # Another provider's state means nothing here, so it is left out.
            if state.provider == route.profile.name:
                at_data = f"{at}.reasoning_state[{number}].data"
                blocks += [{"reasoningContent": block} for block in _state(state.data, at_data)]
    return blocks


def _state(data: bytes, at: str) -> Blocks:
    """Reasoning as it was given out. Raises Fault for anything else: it goes into the request,
    where other blocks would speak for the assistant."""
    try:
        blocks = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _no_state(at) from None
    if not isinstance(blocks, list) or not all(map(_is_reasoning, blocks)):
        raise _no_state(at)
    return blocks


def _is_reasoning(block: Any) -> bool:
    if not isinstance(block, dict) or len(block) != 1:
        return False
    if "redactedContent" in block:
        return _is_base64(block["redactedContent"])
    text = block.get("reasoningText")
    return (
        isinstance(text, dict)
        and "text" in text
        and set(text) <= {"text", "signature"}
        and all(isinstance(value, str) for value in text.values())
    )


def _is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        return False


def _no_state(at: str) -> Fault:
    return invalid([Violation(at, "is not reasoning state as it was given out")])
