"""The Anthropic codec with routes to its models, and requests to encode."""

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.anthropic import Anthropic
from tests.support.recordings import route_to

CODEC = Anthropic()
HAIKU = "claude-haiku-4-5"
SONNET = "claude-sonnet-5-5"
OPUS = "claude-opus-5-5"
_READ: dict[str, Route] = {}


def routed(model: str = HAIKU) -> Route:
    """A route to a model with the output limit of its profile."""
    if model not in _READ:
        _READ[model] = route_to("anthropic", model, max_output=64000)
    return _READ[model]


def asked(**fields) -> pb.GenerateRequest:
    """A request; one that says hello, unless told otherwise."""
    fields.setdefault("messages", [said("hello")])
    return pb.GenerateRequest(model="m", **fields)


def said(text: str, role=pb.ROLE_USER, **more) -> pb.Message:
    """A message of one text."""
    return pb.Message(role=role, content=[pb.ContentPart(text=text)], **more)


def effort(level: int) -> pb.Reasoning:
    """A wish about reasoning."""
    return pb.Reasoning(effort=level)
