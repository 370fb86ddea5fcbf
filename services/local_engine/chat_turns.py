"""Conversations of the wire as chat templates read them, tool calls included. Pure.

Templates are Hugging Face's: tools in OpenAI's form, a call's arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid

Turn = dict[str, Any]
"""role and content; where there are any, also tool_calls, tool_call_id and name."""

_ROLES: Mapping[int, str] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_NO_TOOLS = "this model is not set up to call tools"


def unsupported(feature: str, message: str) -> Fault:
    """UNSUPPORTED, naming the feature."""
    return Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, message, metadata={"feature": feature})


def refuse_tools(request: pb.GenerateRequest, why: str = _NO_TOOLS) -> None:
    """Raises Fault UNSUPPORTED when the request has tools."""
    if request.tools:
        raise unsupported("tools", why)


def chat_turns(
    messages: Sequence[pb.Message],
    *,
    tools: bool = False,
    why_not: str = _NO_TOOLS,
    pictures: Iterator[Mapping[str, Any]] | None = None,
) -> list[Turn]:
    """The conversation, in order.

    For a model that reads images `pictures` are what takes the place of each, in order. Raises
    Fault UNSUPPORTED for images of any other and, unless `tools`, for tool calls and their
    results, with the text `why_not`; INVALID_REQUEST for arguments of a call that are no JSON
    object.
    """
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        turn: Turn = {"role": _ROLES[message.role], "content": _content(message, pictures)}
        if message.tool_calls or message.role == pb.ROLE_TOOL:
            if not tools:
                raise unsupported("tools", why_not)
            if message.tool_calls:
                names.update((call.id, call.name) for call in message.tool_calls)
                turn["tool_calls"] = _calls(message, f"messages[{number}]")
            if message.role == pb.ROLE_TOOL:
                turn["tool_call_id"] = message.tool_call_id
                # Templates of Llama, Gemma and Mistral want it; the wire has it at the call only.
                if name := names.get(message.tool_call_id):
                    turn["name"] = name
        turns.append(turn)
    return turns


def _content(
    message: pb.Message, pictures: Iterator[Mapping[str, Any]] | None
) -> str | list[Mapping[str, Any]]:
    """What was said. The one place where parts that are no text become a turn's."""
    if not any(part.HasField("image") for part in message.content):
        return "".join(part.text for part in message.content)
    if pictures is None:
        raise _no_images()
    return [
        next(pictures) if part.HasField("image") else {"type": "text", "text": part.text}
        for part in message.content
    ]


def _no_images() -> Fault:
    return unsupported("images", "this model does not read images")


def _calls(message: pb.Message, at: str) -> list[dict[str, Any]]:
    calls = []
    for number, call in enumerate(message.tool_calls):
        # Templates write the arguments by their keys, or as JSON of their own spacing.
        arguments = _object(call.arguments or "{}", f"{at}.tool_calls[{number}].arguments")
        function = {"name": call.name, "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    return calls


def tool_entries(tools: Sequence[pb.Tool], *, strict: bool = False) -> list[dict[str, Any]]:
    """The tools in OpenAI's form; with `strict`, arguments are to satisfy their schemas exactly.

    Raises Fault INVALID_REQUEST for a schema that is no JSON object.
    """
    entries = []
    for number, tool in enumerate(tools):
        function: dict[str, Any] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        schema: dict[str, Any] = {"type": "object", "properties": {}}
        if tool.parameters_json_schema:
            at = f"tools[{number}].parameters_json_schema"
            schema = _object(tool.parameters_json_schema, at)
        function["parameters"] = schema
        if strict:
            function["strict"] = True
        entries.append({"type": "function", "function": function})
    return entries


def text_size(turns: Sequence[Turn]) -> int:
    """Characters of the turns' contents and calls, about: what tokenising them costs."""
    return sum(
        len(turn["content"]) + sum(len(str(call)) for call in turn.get("tool_calls", ()))
        for turn in turns
    )


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise invalid([Violation(field, "is no JSON object")])
    return found
