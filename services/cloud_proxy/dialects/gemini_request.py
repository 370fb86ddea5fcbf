"""Encodes a GenerateRequest as Gemini's generateContent wants it, as the profile allows.

Answers are decoded elsewhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest, Framing
from services.cloud_proxy.dialects.gemini_turn import FOREIGN_CALL, laid_out, read_state
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
    thinks,
    unsupported,
)

# Generations before 3: they take unsigned calls, and some refuse to show thoughts unless they
# were told to think.
_EARLIER = re.compile(r"gemini-[12]\.", re.ASCII)


def encode(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> EncodedRequest:
    """The whole request. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    paths = route.profile.paths
    streams = route.model.streaming
    body, dropped = body_of(request, route, max_tokens)
    return EncodedRequest(
        path=path_for(paths.stream if streams else paths.chat, route),
        body=serialised(body),
        headers=JSON_HEADERS,
        framing=Framing.SSE if streams else None,
        dropped=dropped,
    )


def body_of(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A GenerateContentRequest without its model, and the names of dropped parameters.

    Raises Fault UNSUPPORTED and INVALID_REQUEST.
    """
    refuse_raw_prompts(request, route)
    if request.continuation.text or request.continuation.token_ids:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with an assistant's turn"
        )
    body: dict[str, Any] = {}
    instructions = _instructions(request, route)
    if instructions:
        body["systemInstruction"] = {"parts": instructions}
    body["contents"] = _contents(request, route)
    _tools(request, route, body)
    config, dropped = sampling(request, route, max_tokens)
    _response_format(request.response_format, route, config)
    if config:
        body["generationConfig"] = config
    merge(body, reasoning(request, route))
    if _shows_thoughts(request, route):
        merge(body, {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}})
    merge(body, route.profile.body)
    return body, dropped


def _shows_thoughts(request: pb.GenerateRequest, route: Route) -> bool:
    wish = request.reasoning
    if (wish.HasField("include") and not wish.include) or not thinks(request, route):
        return False
    told = wish.effort != pb.REASONING_EFFORT_UNSPECIFIED
    return told or not _EARLIER.match(route.model.name)


def _instructions(request: pb.GenerateRequest, route: Route) -> list[dict[str, Any]]:
    """The system messages, which Gemini takes apart from the conversation and before it."""
    parts: list[dict[str, Any]] = []
    begun = False
    for number, message in enumerate(request.messages):
        if message.role != pb.ROLE_SYSTEM:
            begun = True
            continue
        if begun:
            raise unsupported(
                "system_in_conversation",
                f"{route.name} takes instructions before the conversation only"
                f" (messages[{number}])",
            )
        for part in message.content:
            if part.WhichOneof("part") != "text":
                raise unsupported("images", f"{route.name} takes instructions as text only")
            if part.text:
                parts.append({"text": part.text})
    return parts


def _contents(request: pb.GenerateRequest, route: Route) -> list[dict[str, Any]]:
    """The conversation. Results of the calls of one turn go together, as Gemini demands."""
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    results: list[dict[str, Any]] | None = None
    for number, message in enumerate(request.messages):
        at = f"messages[{number}]"
        if message.role == pb.ROLE_TOOL:
            if results is None:
                results = []
                contents.append({"role": "user", "parts": results})
            results.append(_result(message, at, names, route))
            continue
        results = None
        if message.role == pb.ROLE_ASSISTANT:
            names.update({call.id: call.name for call in message.tool_calls})
            contents.append({"role": "model", "parts": _turn(message, at, route)})
        elif message.role == pb.ROLE_USER:
            parts = [
                _part(part, f"{at}.content[{n}]", route) for n, part in enumerate(message.content)
            ]
            contents.append({"role": "user", "parts": parts})
    return contents


def _turn(message: pb.Message, at: str, route: Route) -> list[dict[str, Any]]:
    """An assistant's turn, with its signatures where this provider gave any."""
    text = _joined(message.content, "messages of the assistant", route)
    calls: list[dict[str, Any]] = [
        {
            "functionCall": {
                "name": call.name,
                "args": arguments(call.arguments, f"{at}.tool_calls[{n}].arguments"),
                **({"id": call.id} if call.id else {}),
            }
        }
        for n, call in enumerate(message.tool_calls)
    ]
    # Another provider's state means nothing here, so it is left out, as the contract says.
    own = [
        (n, state.data)
        for n, state in enumerate(message.reasoning_state)
        if state.provider == route.profile.name
    ]
    if len(own) > 1:
        raise invalid([Violation(f"{at}.reasoning_state", "holds two states of one turn")])
    if own:
        place = f"{at}.reasoning_state[{own[0][0]}].data"
        return laid_out(read_state(own[0][1], place), text, calls, place)
    if calls and "reasoning" in route.model.capabilities and not _EARLIER.match(route.model.name):
        calls[0] = {**calls[0], "thoughtSignature": FOREIGN_CALL}
    return [{"text": text}, *calls] if text or not calls else calls


def _result(message: pb.Message, at: str, names: dict[str, str], route: Route) -> dict[str, Any]:
    """A tool's answer. Gemini wants the function's name with it, which only the call says."""
    name = names.get(message.tool_call_id)
    if name is None:
        raise invalid([Violation(f"{at}.tool_call_id", "names no call of an earlier turn")])
    output: Any = _joined(message.content, "results of tools", route)
    try:
        parsed = orjson.loads(output)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict):
        output = parsed
    # Always under "output": an object of its own could hold names that mean something to Gemini.
    response = {"output": output}
    return {"functionResponse": {"id": message.tool_call_id, "name": name, "response": response}}


def _joined(content: Sequence[pb.ContentPart], where: str, route: Route) -> str:
    if any(part.WhichOneof("part") != "text" for part in content):
        raise unsupported("images", f"{route.name} takes no images in {where}")
    return "".join(part.text for part in content)


def _part(part: pb.ContentPart, at: str, route: Route) -> dict[str, Any]:
    if part.WhichOneof("part") == "text":
        return {"text": part.text}
    require("images", "images", route, f"does not see images ({at})")
    image = part.image
    if image.WhichOneof("source") == "uri":
        return {"fileData": {"mimeType": image.media_type, "fileUri": image.uri}}
    encoded = base64.b64encode(image.data).decode("ascii")
    return {"inlineData": {"mimeType": image.media_type, "data": encoded}}


def _tools(request: pb.GenerateRequest, route: Route, body: dict[str, Any]) -> None:
    if not request.tools:
        return
    require("tools", "tools", route, "cannot call tools")
    declared = []
    for number, tool in enumerate(request.tools):
        function: dict[str, Any] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        if tool.parameters_json_schema:
            at = f"tools[{number}].parameters_json_schema"
            function["parametersJsonSchema"] = schema(tool.parameters_json_schema, at)
        declared.append(function)
    body["tools"] = [{"functionDeclarations": declared}]
    wish = check_tool_choice(request.tool_choice, route)
    calling: dict[str, Any] = {}
    if wish != "auto":
        calling["mode"] = "NONE" if wish == "none" else "ANY"
    if wish == "named":
        calling["allowedFunctionNames"] = [request.tool_choice.name]
    if calling:
        body["toolConfig"] = {"functionCallingConfig": calling}


def _response_format(wanted: pb.ResponseFormat, route: Route, config: dict[str, Any]) -> None:
    kind = check_response_format(wanted, route)
    if kind is None:
        return
    config["responseMimeType"] = "application/json"
    if kind == "json_schema":
        config["responseJsonSchema"] = schema(wanted.json_schema, "response_format.json_schema")
