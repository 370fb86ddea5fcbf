"""The Ollama codec with the models that its tests ask by, and requests to encode."""

from __future__ import annotations

import json
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.ollama import Ollama
from tests.support.recordings import route_to

CODEC = Ollama()
EVERYTHING = ["generate", "tools", "structured_output", "images", "reasoning"]


def routed(provider: str = "ollama", model: str = "qwen3", **entry: Any) -> Route:
    """A route to a model that can do all, unless the entry says otherwise."""
    entry.setdefault("capabilities", EVERYTHING)
    return route_to(provider, model, **entry)


def said(text: str, role: pb.Role = pb.ROLE_USER) -> pb.Message:
    """A message of text."""
    return pb.Message(role=role, content=[pb.ContentPart(text=text)])


def asked(**fields: Any) -> pb.GenerateRequest:
    """A request, with one user message unless others are given."""
    fields.setdefault("messages", [said("hello")])
    return pb.GenerateRequest(model="m", **fields)


def encoded(request: pb.GenerateRequest, route: Route | None = None, **more: Any) -> dict[str, Any]:
    """The body of the encoded request."""
    body: dict[str, Any] = json.loads(CODEC.encode_request(request, route or routed(), **more).body)
    return body
