"""Encodes a GenerateRequest as OpenAI's chat completions want it, as the profile allows.

Answers are decoded elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest, Framing
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
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
    body: dict[str, Any] = {"model": route.model.name, "messages": messages(request, route)}
    if route.model.streaming:
        body["stream"] = True
        if profile.usage.ask:
            body["stream_options"] = {"include_usage": True}
    parameters, dropped = sampling(request, route, max_tokens)
    body.update(parameters)
    _tools(request, route, body)
    _response_format(request.response_format, route, body)
    merge(body, reasoning(request, route))
    merge(body, profile.body)
    merge(body, continuation_body(request, route))
    path = profile.paths.stream if route.model.streaming else profile.paths.chat
    if request.continuation.text and profile.continuation and profile.continuation.path:
        path = profile.continuation.path
    return EncodedRequest(
        path=path_for(path, route),
        body=serialised(body),
        headers=JSON_HEADERS,
        framing=Framing.SSE if route.model.streaming else None,
        dropped=dropped,
    )


def continuation_body(request: pb.GenerateRequest, route: Route) -> Mapping[str, Any]:
    """What a request that continues an assistant's turn has besides that turn."""
    rule = route.profile.continuation
    return rule.body if rule and request.continuation.text else {}


def messages(request: pb.GenerateRequest, route: Route) -> list[dict[str, Any]]:
    """The conversation, with what it is to be continued from. Raises Fault UNSUPPORTED."""
    found = [_message(m, f"messages[{n}]", route) for n, m in enumerate(request.messages)]
    continuation = request.continuation
    if not continuation.text:
        if continuation.token_ids:
            raise unsupported("continuation.token_ids", f"{route.profile.name} takes text only")
        return found
    rule = route.profile.continuation
    if rule is None or "resume_text" not in route.model.capabilities:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with an assistant's turn"
        )
    last: dict[str, Any] = {"role": "assistant", "content": continuation.text}
    if rule.flag:
        last[rule.flag] = True
    return [*found, last]


def _message(message: pb.Message, at: str, route: Route) -> dict[str, Any]:
    encoded: dict[str, Any] = {"role": _ROLES[message.role]}
    texts_only = all(part.WhichOneof("part") == "text" for part in message.content)
    if not message.content:
        encoded["content"] = None if message.tool_calls else ""
    elif texts_only and (len(message.content) == 1 or route.profile.content == "text"):
        encoded["content"] = "".join(part.text for part in message.content)
    else:
        encoded["content"] = [
            _part(part, f"{at}.content[{n}]", route) for n, part in enumerate(message.content)
        ]
    if message.tool_calls:
        encoded["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        encoded["tool_call_id"] = message.tool_call_id
    if route.profile.reasoning.replay and route.profile.reasoning.text_field:
        # Another provider's state means nothing here, so it is left out, as the contract says.
        own = [s.data for s in message.reasoning_state if s.provider == route.profile.name]
        if own:
            encoded[route.profile.reasoning.text_field] = b"".join(own).decode("utf-8", "replace")
    return encoded


def _part(part: pb.ContentPart, at: str, route: Route) -> dict[str, Any]:
    if part.WhichOneof("part") == "text":
        return {"type": "text", "text": part.text}
    if route.profile.content == "text":
        raise unsupported("images", f"{route.name} does not see images ({at})")
    require("images", "images", route, f"does not see images ({at})")
    image = part.image
    if image.WhichOneof("source") == "uri":
        url = image.uri
    else:
        encoded = base64.b64encode(image.data).decode("ascii")
        url = f"data:{image.media_type};base64,{encoded}"
    return {"type": "image_url", "image_url": {"url": url}}


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    require("tools", "tools", route, "cannot call tools")
    wish = check_tool_choice(request.tool_choice, route)
    body["tools"] = []
    for number, tool in enumerate(request.tools):
        function: dict[str, Any] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        if tool.parameters_json_schema:
            at = f"tools[{number}].parameters_json_schema"
            function["parameters"] = schema(tool.parameters_json_schema, at)
        body["tools"].append({"type": "function", "function": function})
    if wish == "named":
        named = {"name": request.tool_choice.name}
        body["tool_choice"] = {"type": "function", "function": named}
    elif wish != "auto":
        # Auto is what every provider does unless told otherwise.
        body["tool_choice"] = wish


def _response_format(wanted: pb.ResponseFormat, route: Route, body: dict[str, Any]) -> None:
    kind = check_response_format(wanted, route)
    if kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        found = schema(wanted.json_schema, "response_format.json_schema")
        body["response_format"] = {
            "type": "json_schema",
            # Without strict the provider treats the schema as a hint; the contract promises more.
            "json_schema": {"name": "answer", "schema": found, "strict": True},
        }
