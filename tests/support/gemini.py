"""The Gemini codec with the profiles that its tests ask by, and requests to encode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.gemini import Gemini
from tests.support.recordings import route_to

CODEC = Gemini()
FLASH = "gemini-3.8-flash"
OLDER = "gemini-2.5-flash-lite"


def routed(model: str = FLASH, provider: str = "gemini", **entry: Any) -> Route:
    """A route to one of the models."""
    return route_to(provider, model, **entry)


def said(text: str, role: pb.Role = pb.ROLE_USER) -> pb.Message:
    """A message of text."""
    return pb.Message(role=role, content=[pb.ContentPart(text=text)])


def asked(**fields: Any) -> pb.GenerateRequest:
    """A request, with one user message unless others are given."""
    fields.setdefault("messages", [said("hello")])
    return pb.GenerateRequest(model="m", **fields)


def called(name: str, arguments: str = "", identity: str = "c1", index: int = 0) -> pb.ToolCall:
    """A call of an assistant's turn."""
    return pb.ToolCall(index=index, id=identity, name=name, arguments=arguments)


def answered(text: str, identity: str = "c1") -> pb.Message:
    """A tool's answer."""
    return pb.Message(role=pb.ROLE_TOOL, tool_call_id=identity, content=[pb.ContentPart(text=text)])


def encoded(request: pb.GenerateRequest, route: Route | None = None, **more: Any) -> dict[str, Any]:
    """The body of the encoded request."""
    body: dict[str, Any] = json.loads(CODEC.encode_request(request, route or routed(), **more).body)
    return body


def turn(
    text: str = "",
    calls: Sequence[pb.ToolCall] = (),
    states: Sequence[pb.ReasoningState] = (),
) -> pb.Message:
    """A turn of the assistant."""
    content = [pb.ContentPart(text=text)] if text else []
    return pb.Message(
        role=pb.ROLE_ASSISTANT, content=content, tool_calls=calls, reasoning_state=states
    )


def state(document: Any, provider: str = "gemini") -> pb.ReasoningState:
    """An opaque state: bytes as they are, anything else as JSON."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return pb.ReasoningState(provider=provider, data=data)


def parts_of(message: pb.Message, route: Route | None = None) -> list[dict[str, Any]]:
    """What a turn after a question is encoded as."""
    body = encoded(asked(messages=[said("?"), message]), route)
    found: list[dict[str, Any]] = body["contents"][1]["parts"]
    return found
