"""The conversation as Anthropic's Messages API wants it: system text apart, turns that alternate.

What else a request says is in anthropic_request.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.requests import (
    append_turn,
    arguments,
    refuse_late_system,
    require,
    unsupported,
)

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
# The fields of the blocks that carry reasoning; all of them are strings.
_STATE = {
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}

Blocks = list[dict[str, Any]]


def conversation(request: pb.GenerateRequest, route: Route) -> tuple[Blocks, Blocks]:
    """The blocks of the system prompt, and the turns with what they are to be continued from.

    Raises Fault UNSUPPORTED and INVALID_REQUEST.
    """
    system: Blocks = []
    turns: Blocks = []
    for number, message in enumerate(request.messages):
        at = f"messages[{number}]"
        if message.role == pb.ROLE_SYSTEM:
            refuse_late_system(turns, at, route)
            system += _texts(message, at)
        elif message.role == pb.ROLE_ASSISTANT:
            append_turn(turns, "assistant", _assistant(message, at, route))
        elif message.role == pb.ROLE_TOOL:
            append_turn(turns, "user", [_result(message, at, route)])
        else:
            append_turn(turns, "user", _content(message, at, route))
    if not turns:
        raise unsupported("messages", f"{route.name} needs more than system messages")
    _continue(request.continuation, turns, route)
    return system, turns


def _continue(continuation: pb.Continuation, turns: Blocks, route: Route) -> None:
    if not continuation.text:
        if continuation.token_ids:
            raise unsupported("continuation.token_ids", f"{route.profile.name} takes text only")
        if turns[-1]["role"] == "assistant":
            raise unsupported(
                "messages", f"{route.name} answers users and tools, not an assistant's last turn"
            )
        return
    if route.profile.continuation is None or "resume_text" not in route.model.capabilities:
        raise unsupported(
            "continuation.text", f"{route.name} cannot go on with an assistant's turn"
        )
    if continuation.text[-1].isspace():
        # Refused by the API; without the white space the answer would repeat it.
        raise unsupported("continuation.text", f"{route.name} cannot go on after white space")
    append_turn(turns, "assistant", [{"type": "text", "text": continuation.text}])


def _texts(message: pb.Message, at: str) -> Blocks:
    for number, part in enumerate(message.content):
        if part.WhichOneof("part") != "text":
            raise unsupported("images", f"system messages hold text only ({at}.content[{number}])")
    return [{"type": "text", "text": part.text} for part in message.content if part.text]


def _content(message: pb.Message, at: str, route: Route) -> Blocks:
    blocks = []
    for number, part in enumerate(message.content):
        if part.WhichOneof("part") == "image":
            blocks.append(_image(part.image, f"{at}.content[{number}]", route))
        elif part.text:
            # The API refuses empty text blocks.
            blocks.append({"type": "text", "text": part.text})
    return blocks


def _image(image: pb.Image, at: str, route: Route) -> dict[str, Any]:
    require("images", "images", route, f"does not see images ({at})")
    if image.WhichOneof("source") == "uri":
        return {"type": "image", "source": {"type": "url", "url": image.uri}}
    if image.media_type not in _IMAGES:
        raise unsupported("images", f"{route.name} takes {', '.join(_IMAGES)} only ({at})")
    data = base64.b64encode(image.data).decode("ascii")
    source = {"type": "base64", "media_type": image.media_type, "data": data}
    return {"type": "image", "source": source}


def _assistant(message: pb.Message, at: str, route: Route) -> Blocks:
    blocks = _reasoning_state(message, at, route)
    blocks += _content(message, at, route)
    for number, call in enumerate(message.tool_calls):
        blocks.append(
            {
                "type": "tool_use",
                "id": _identity(call.id),
                "name": call.name,
                "input": arguments(call.arguments, f"{at}.tool_calls[{number}].arguments"),
            }
        )
    return blocks


def _result(message: pb.Message, at: str, route: Route) -> dict[str, Any]:
    block: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": _identity(message.tool_call_id),
    }
    content = _content(message, at, route)
    if content:
        block["content"] = content
    return block


def _identity(identity: str) -> str:
    """A call's id with the characters that the API takes: other providers' ids hold others."""
    return _UNSAFE.sub(lambda found: f"_{ord(found[0]):x}", identity)


def _reasoning_state(message: pb.Message, at: str, route: Route) -> Blocks:
    """The thinking of this turn, unchanged; it must come before what it led to."""
    blocks: Blocks = []
    if not route.profile.reasoning.replay:
        return blocks
    for number, state in enumerate(message.reasoning_state):
        # Another provider's state means nothing here, so it is left out, as the contract says.
        if state.provider == route.profile.name:
            blocks += _thinking_blocks(state.data, f"{at}.reasoning_state[{number}].data")
    return blocks


def _thinking_blocks(data: bytes, at: str) -> Blocks:
    """Blocks of thinking from what a caller hands back. Raises Fault for anything else: it goes
    into the request, where other blocks would speak for the assistant."""
    try:
        blocks = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _no_state(at) from None
    if not isinstance(blocks, list):
        raise _no_state(at)
    for block in blocks:
        if not isinstance(block, dict) or not all(isinstance(v, str) for v in block.values()):
            raise _no_state(at)
        if _STATE.get(block.get("type", "")) != set(block):
            raise _no_state(at)
    return blocks


def _no_state(at: str) -> Fault:
    return invalid([Violation(at, "is not reasoning state as it was given out")])
