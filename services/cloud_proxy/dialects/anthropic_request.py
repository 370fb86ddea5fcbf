"""Encodes a GenerateRequest as Anthropic's Messages API wants it, as the profile allows.

The conversation itself is in anthropic_messages; answers are decoded elsewhere.
"""

from __future__ import annotations

from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest, Framing
from services.cloud_proxy.dialects.anthropic_messages import conversation
from services.cloud_proxy.dialects.fields import object_of
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


def encode(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> EncodedRequest:
    """The whole request. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    profile = route.profile
    body = _prompt(request, route)
    if route.model.streaming:
        body["stream"] = True
    parameters, dropped = sampling(request, route, _limit(request, route, max_tokens))
    body.update(_acceptable(parameters, route))
    _check_budget(body, route)
    path = profile.paths.stream if route.model.streaming else profile.paths.chat
    return EncodedRequest(
        path=path_for(path, route),
        body=serialised(body),
        headers=JSON_HEADERS,
        framing=Framing.SSE if route.model.streaming else None,
        dropped=dropped,
    )


def encode_count(request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
    """A request for the size of the prompt: what is generated from it plays no part."""
    if not route.profile.paths.count:
        return None
    path = path_for(route.profile.paths.count, route)
    return EncodedRequest(path, serialised(_prompt(request, route)), JSON_HEADERS, None)


def _prompt(request: pb.GenerateRequest, route: Route) -> dict[str, Any]:
    """All that makes up the prompt: messages, tools, form and thinking."""
    refuse_raw_prompts(request, route)
    system, messages = conversation(request, route)
    body: dict[str, Any] = {"model": route.model.name}
    if system:
        body["system"] = system
    body["messages"] = messages
    _tools(request, route, body)
    _response_format(request, route, body)
    merge(body, reasoning(request, route))
    merge(body, route.profile.body)
    _check_thinking(request, route, body)
    return body


def _limit(request: pb.GenerateRequest, route: Route, max_tokens: int | None) -> int:
    """The tokens to generate at most: the API wants to be told in every request."""
    most = route.model.max_output
    if max_tokens is not None:
        return min(max_tokens, most)
    if not request.sampling.HasField("max_tokens"):
        return most
    asked: int = request.sampling.max_tokens
    if asked > most:
        raise unsupported("sampling.max_tokens", f"{route.name} generates up to {most} tokens")
    return asked


def _acceptable(parameters: dict[str, Any], route: Route) -> dict[str, Any]:
    """The parameters without those that ask for nothing and that the API refuses all the same:
    any top_k below 1, and temperature and top_p together."""
    left = dict(parameters)
    if left.get("top_k", 1) < 1:
        del left["top_k"]
    if "temperature" in left and left.get("top_p") == 1:
        del left["top_p"]
    if "temperature" in left and "top_p" in left:
        raise unsupported("sampling.top_p", f"{route.name} takes temperature or top_p, not both")
    return left


def _check_thinking(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    """Raises Fault for what the API refuses while the model thinks."""
    if object_of(body.get("thinking")).get("type", "disabled") == "disabled":
        return
    if request.tools and request.tool_choice.mode == pb.ToolChoice.MODE_REQUIRED:
        raise unsupported("tool_choice", f"{route.name} cannot be made to call a tool and think")
    if request.continuation.text:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with a turn and think before it"
        )


def _check_budget(body: dict[str, Any], route: Route) -> None:
    """Raises Fault unless the thinking leaves something of max_tokens for the answer."""
    budget = object_of(body.get("thinking")).get("budget_tokens", 0)
    if body.get("max_tokens", budget + 1) <= budget:
        raise unsupported(
            "reasoning.effort",
            f"{route.name} may think for {budget} tokens, and max_tokens "
            f"({body['max_tokens']}) must be above that",
        )


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    require("tools", "tools", route, "cannot call tools")
    body["tools"] = []
    for number, tool in enumerate(request.tools):
        encoded: dict[str, Any] = {"name": tool.name}
        if tool.description:
            encoded["description"] = tool.description
        at = f"tools[{number}].parameters_json_schema"
        # Required, type included; arguments are an object for every provider.
        encoded["input_schema"] = {
            "type": "object",
            **schema(tool.parameters_json_schema or "{}", at),
        }
        body["tools"].append(encoded)
    choice = request.tool_choice
    wish = check_tool_choice(choice, route)
    if wish == "named":
        body["tool_choice"] = {"type": "tool", "name": choice.name}
    elif choice.mode != pb.ToolChoice.MODE_UNSPECIFIED:
        body["tool_choice"] = {"type": "any" if wish == "required" else wish}


def _response_format(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    wanted = request.response_format
    if check_response_format(wanted, route) != "json_schema":
        return
    if request.continuation.text:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with a turn held to a schema"
        )
    found = schema(wanted.json_schema, "response_format.json_schema")
    body["output_config"] = {"format": {"type": "json_schema", "schema": found}}
