"""Encodes a GenerateRequest as Ollama's /api/chat wants it, as the profile allows.

Answers are decoded elsewhere.
"""

from __future__ import annotations

import base64
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest, Framing
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
    arguments,
    check_response_format,
    check_tool_choice,
    merge,
    path_for,
    reasoning,
    refuse_raw_prompts,
    require,
    sampling,
    schema,
    serialised,
    unsupported,
)

_ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}


def encode(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> EncodedRequest:
    """The whole request. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    profile = route.profile
    refuse_raw_prompts(request, route)
    if request.continuation.text or request.continuation.token_ids:
        field = "text" if request.continuation.text else "token_ids"
        raise unsupported(
            f"continuation.{field}", f"{route.name} cannot go on with an assistant's turn"
        )
    body: dict[str, Any] = {
        "model": route.model.name,
        "messages": _messages(request, route),
        # Streaming is what the server does unless told not to.
        "stream": route.model.streaming,
    }
    options, dropped = sampling(request, route, max_tokens)
    if options:
        body["options"] = options
    _tools(request, route, body)
    _format(request.response_format, route, body)
    merge(body, reasoning(request, route))
    merge(body, profile.body)
    path = profile.paths.stream if route.model.streaming else profile.paths.chat
    return EncodedRequest(
        path=path_for(path, route),
        body=serialised(body),
        headers=JSON_HEADERS,
        framing=Framing.NDJSON if route.model.streaming else None,
        dropped=dropped,
    )


def _messages(request: pb.GenerateRequest, route: Route) -> list[dict[str, Any]]:
    """The conversation. Results name the tool, so the calls so far are remembered by their id."""
    names: dict[str, str] = {}
    found = []
    for number, message in enumerate(request.messages):
        at = f"messages[{number}]"
        encoded = _message(message, at, route)
        if message.role == pb.ROLE_TOOL:
            if message.tool_call_id not in names:
                raise invalid([Violation(f"{at}.tool_call_id", "names no earlier call")])
            encoded["tool_name"] = names[message.tool_call_id]
            # Tells two calls of one tool apart; older servers pass over it.
            encoded["tool_call_id"] = message.tool_call_id
        # Ids that are made up repeat from turn to turn: the latest one is meant.
        names.update((call.id, call.name) for call in message.tool_calls)
        found.append(encoded)
    return found


def _message(message: pb.Message, at: str, route: Route) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "role": _ROLES[message.role],
        "content": "".join(part.text for part in message.content),
    }
    images = [
        _image(part.image, f"{at}.content[{n}]", route)
        for n, part in enumerate(message.content)
        if part.WhichOneof("part") == "image"
    ]
    if images:
        encoded["images"] = images
    if message.tool_calls:
        encoded["tool_calls"] = [
            _call(call, f"{at}.tool_calls[{n}].arguments")
            for n, call in enumerate(message.tool_calls)
        ]
    if route.profile.reasoning.replay:
        # Another provider's state means nothing here, so it is left out, as the contract says.
        own = [s.data for s in message.reasoning_state if s.provider == route.profile.name]
        if own:
            encoded["thinking"] = b"".join(own).decode("utf-8", "replace")
    return encoded


def _image(image: pb.Image, at: str, route: Route) -> str:
    require("images", "images", route, f"does not see images ({at})")
    if image.WhichOneof("source") == "uri":
        raise unsupported("images", f"{route.name} takes images as bytes only ({at})")
    return base64.b64encode(image.data).decode("ascii")


def _call(call: pb.ToolCall, at: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments(call.arguments, at)}
    return {"id": call.id, "function": function} if call.id else {"function": function}


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    require("tools", "tools", route, "cannot call tools")
    if check_tool_choice(request.tool_choice, route) == "none":
        # What the model does not know of it cannot call.
        return
    body["tools"] = []
    for number, tool in enumerate(request.tools):
        function: dict[str, Any] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        at = f"tools[{number}].parameters_json_schema"
        # Always there: the templates of many models write it out.
        function["parameters"] = {
            "type": "object",
            "properties": {},
            **schema(tool.parameters_json_schema or "{}", at),
        }
        body["tools"].append({"type": "function", "function": function})


def _format(wanted: pb.ResponseFormat, route: Route, body: dict[str, Any]) -> None:
    kind = check_response_format(wanted, route)
    if kind == "json_object":
        body["format"] = "json"
    elif kind == "json_schema":
        body["format"] = schema(wanted.json_schema, "response_format.json_schema")
