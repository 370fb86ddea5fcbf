"""Encodes a GenerateRequest as OpenAI's chat completions want it, as the profile allows.

Nothing is left out silently: what the provider cannot honour is refused by name, except for what
its profile says to drop, which is reported in `dropped`. Answers are decoded elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest
from services.cloud_proxy.profiles import REFUSED

_ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_EFFORTS = {
    pb.REASONING_EFFORT_NONE: "none",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
_SCALARS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "n", "ignore_eos", "min_tokens",
)  # fmt: skip
# Values that ask for nothing: not sending them is honouring them.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "n": (1,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
}


def unsupported(feature: str, why: str) -> Fault:
    """The refusal of what this provider or model cannot do."""
    return Fault(
        errors_pb2.ERROR_REASON_UNSUPPORTED, f"{feature}: {why}", metadata={"feature": feature}
    )


def encode(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> EncodedRequest:
    """The whole request. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    profile = route.profile
    if request.prompt_token_ids:
        raise unsupported("prompt_token_ids", f"{profile.name} takes messages only")
    if request.prompt:
        raise unsupported("prompt", f"{profile.name} puts every prompt into its chat template")
    if request.sampling.HasField("logprobs"):
        raise unsupported("sampling.logprobs", f"{profile.name} does not give token ids with them")
    body: dict[str, Any] = {"model": route.model.name, "messages": _messages(request, route)}
    if route.model.streaming:
        body["stream"] = True
        if profile.ask_usage:
            body["stream_options"] = {"include_usage": True}
    dropped = _sampling(request, route, body, max_tokens)
    _tools(request, route, body)
    _response_format(request.response_format, route, body)
    _reasoning(request.reasoning, route, body)
    continued = request.HasField("continuation") and bool(request.continuation.text)
    path = profile.path
    if continued and profile.continuation is not None:
        path = profile.continuation.path
    return EncodedRequest(
        path=path,
        body=orjson.dumps(body),
        headers={"Content-Type": "application/json"},
        streaming=route.model.streaming,
        dropped=dropped,
    )


def _messages(request: pb.GenerateRequest, route: Route) -> list[dict[str, Any]]:
    messages = [_message(m, f"messages[{n}]", route) for n, m in enumerate(request.messages)]
    continuation = request.continuation
    if not continuation.text:
        if continuation.token_ids:
            raise unsupported("continuation.token_ids", f"{route.profile.name} takes text only")
        return messages
    if route.profile.continuation is None or "resume_text" not in route.model.capabilities:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with an assistant's turn"
        )
    messages.append(
        {"role": "assistant", "content": continuation.text, route.profile.continuation.flag: True}
    )
    return messages


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
    if "images" not in route.model.capabilities or route.profile.content == "text":
        raise unsupported("images", f"{route.name} does not see images ({at})")
    image = part.image
    if image.WhichOneof("source") == "uri":
        url = image.uri
    else:
        encoded = base64.b64encode(image.data).decode("ascii")
        url = f"data:{image.media_type};base64,{encoded}"
    return {"type": "image_url", "image_url": {"url": url}}


def _sampling(
    request: pb.GenerateRequest, route: Route, body: dict[str, Any], max_tokens: int | None
) -> tuple[str, ...]:
    sampling = request.sampling
    asked: dict[str, Any] = {
        name: getattr(sampling, name) for name in _SCALARS if sampling.HasField(name)
    }
    if max_tokens is not None:
        asked["max_tokens"] = max_tokens
    if sampling.stop:
        asked["stop"] = list(sampling.stop)
    reasoning = route.profile.reasoning
    thinks = reasoning.on_by_default or request.reasoning.effort not in (
        pb.REASONING_EFFORT_UNSPECIFIED,
        pb.REASONING_EFFORT_NONE,
    )
    if request.reasoning.effort == pb.REASONING_EFFORT_NONE:
        thinks = False
    dropped = []
    for name, value in asked.items():
        rule = route.model.parameters.get(name, REFUSED)
        if rule.rule == "send" and thinks and name in reasoning.ignores:
            dropped.append(name)
        elif rule.rule == "send":
            _check_range(name, value, rule.minimum, rule.maximum, route)
            body[rule.name] = _shortest(value)
        elif value in _NEUTRAL.get(name, ()):
            continue
        elif rule.rule == "drop":
            dropped.append(name)
        else:
            raise unsupported(f"sampling.{name}", f"{route.name} has no such parameter")
    return tuple(dropped)


def _check_range(
    name: str, value: Any, minimum: float | None, maximum: float | None, route: Route
) -> None:
    size = len(value) if isinstance(value, list) else value
    if (minimum is not None and size < minimum) or (maximum is not None and size > maximum):
        low = f"from {minimum:g} " if minimum is not None else ""
        high = f"up to {maximum:g}" if maximum is not None else "up"
        kind = "entries" if isinstance(value, list) else "is what"
        raise unsupported(f"sampling.{name}", f"{low}{high} {kind} {route.name} takes")


def _shortest(value: Any) -> Any:
    """Floats as the caller wrote them: 0.7 travels as a 32-bit float and must not become
    0.699999988."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    if "tools" not in route.model.capabilities:
        raise unsupported("tools", f"{route.name} cannot call tools")
    body["tools"] = []
    for number, tool in enumerate(request.tools):
        function: dict[str, Any] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        if tool.parameters_json_schema:
            at = f"tools[{number}].parameters_json_schema"
            function["parameters"] = _schema(tool.parameters_json_schema, at)
        body["tools"].append({"type": "function", "function": function})
    choice = request.tool_choice
    if choice.mode == pb.ToolChoice.MODE_NONE:
        body["tool_choice"] = "none"
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED and choice.name:
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
        body["tool_choice"] = "required"


def _response_format(wanted: pb.ResponseFormat, route: Route, body: dict[str, Any]) -> None:
    kind = wanted.WhichOneof("format")
    if kind in (None, "text"):
        return
    if (
        kind not in route.profile.response_formats
        or "structured_output" not in route.model.capabilities
    ):
        raise unsupported(f"response_format.{kind}", f"{route.name} cannot be held to it")
    if kind == "json_object":
        body["response_format"] = {"type": "json_object"}
        return
    schema = _schema(wanted.json_schema, "response_format.json_schema")
    body["response_format"] = {
        "type": "json_schema",
        # Without strict the provider treats the schema as a hint; the contract promises more.
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def _schema(text: str, at: str) -> dict[str, Any]:
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise invalid([Violation(at, "is not JSON")]) from None
    if not isinstance(schema, dict):
        raise invalid([Violation(at, "is not a JSON object")])
    return schema


def _reasoning(reasoning: pb.Reasoning, route: Route, body: dict[str, Any]) -> None:
    effort = _EFFORTS.get(reasoning.effort)
    if effort is None:
        return
    settings = route.profile.reasoning.effort.get(effort)
    if settings is not None and "reasoning" in route.model.capabilities:
        body.update(settings)
    elif effort != "none" or "reasoning" in route.model.capabilities:
        # "None" is what a model without reasoning does anyway.
        raise unsupported("reasoning.effort", f"{route.name} cannot be told how much to reason")
