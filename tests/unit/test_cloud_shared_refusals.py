"""What every codec refuses alike, whatever its format."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.cloud_proxy.dialect_table import DIALECTS
from tests.support.recordings import route_to

MODELS = {
    "openai_chat": ("simulator", "sim-chat"),
    "anthropic": ("anthropic", "claude-opus-4-5"),
    "gemini": ("gemini", "gemini-x"),
    "ollama": ("ollama", "llama"),
    "bedrock_converse": ("bedrock", "amazon.nova-pro-v1:0"),
}
each = pytest.mark.parametrize("dialect", sorted(DIALECTS))


def routed(dialect: str, **changes):
    provider, model = MODELS[dialect]
    route = route_to(provider, model, capabilities=["generate", "tools"])
    return replace(route, profile=replace(route.profile, **changes))


def asked(**fields) -> pb.GenerateRequest:
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])
    return pb.GenerateRequest(model="m", messages=[message], **fields)


@each
@pytest.mark.parametrize(
    "choice",
    [
        pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE),
        pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
        pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="f"),
    ],
)
def test_tool_choice_that_the_profile_does_not_state_is_refused(dialect, choice):
    route = routed(dialect, tool_choice=frozenset({"auto"}))
    request = asked(tools=[pb.Tool(name="f")], tool_choice=choice)
    with pytest.raises(Fault) as caught:
        DIALECTS[dialect].encode_request(request, route)
    assert caught.value.metadata["feature"] == "tool_choice"


@each
def test_schema_that_can_be_read_but_not_written_is_the_callers_fault(dialect):
    deep = '{"a":' * 300 + "{}" + "}" * 300
    request = asked(tools=[pb.Tool(name="f", parameters_json_schema=deep)])
    with pytest.raises(Fault) as caught:
        DIALECTS[dialect].encode_request(request, routed(dialect))
    assert caught.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
