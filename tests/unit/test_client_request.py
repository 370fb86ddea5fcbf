"""Building requests from Python arguments, and the vocabulary they use."""

from __future__ import annotations

import inspect
import math

import pytest

from anabranch import vocabulary
from anabranch.request import MessageLike, RequestOptions, build_request, message
from anabranch.v1 import admin_pb2, auth_pb2
from anabranch.v1 import generation_pb2 as pb
from anabranch.vocabulary import Priority, Residency, Role, WireEnum


def test_keywords_equal_the_contracts_fields() -> None:
    parameters = set(inspect.signature(build_request).parameters)
    assert parameters == set(RequestOptions.__annotations__)
    fields = {
        f.name for m in (pb.GenerateRequest, pb.Sampling, pb.Routing) for f in m.DESCRIPTOR.fields
    }
    assert fields - {"sampling", "routing"} == parameters


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (vocabulary.Residency, pb.Residency),
        (vocabulary.Priority, pb.Priority),
        (vocabulary.Tier, pb.Tier),
        (vocabulary.Role, pb.Role),
        (vocabulary.FinishReason, pb.FinishReason),
        (vocabulary.ReasoningEffort, pb.ReasoningEffort),
        (vocabulary.OverflowReason, pb.OverflowReason),
        (vocabulary.UsageSource, pb.Usage.Source),
        (vocabulary.CacheSource, pb.CacheSource),
        (vocabulary.ToolChoiceMode, pb.ToolChoice.Mode),
        (vocabulary.Capability, pb.Capability),
        (vocabulary.BackendState, admin_pb2.BackendState),
        (vocabulary.BreakerState, admin_pb2.BreakerState),
        (vocabulary.AuditDetail, auth_pb2.AuditDetail),
        (vocabulary.Cipher, auth_pb2.Cipher),
        (vocabulary.QuotaUnit, auth_pb2.QuotaUnit),
        (vocabulary.Verdict, admin_pb2.ExplainRouteResponse.Verdict),
    ],
)
def test_enums_equal_the_wires(mine: type[WireEnum], theirs: object) -> None:
    wire = theirs.DESCRIPTOR.values_by_name  # type: ignore[attr-defined]
    prefix = next(name for name, v in wire.items() if v.number == 0).removesuffix("UNSPECIFIED")
    assert {m.name: m.value for m in mine} == {
        name.removeprefix(prefix): v.number for name, v in wire.items()
    }


def test_absent_and_zero_differ() -> None:
    assert not build_request(model="m").HasField("sampling")
    request = build_request(model="m", temperature=0.0, seed=0)
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("seed")
    assert not request.sampling.HasField("top_p")


def test_routing_and_times() -> None:
    request = build_request(
        residency="local-only", priority=Priority.BATCH, ttft_slo=0.25, timeout=90
    )
    assert request.routing.residency == pb.RESIDENCY_LOCAL_ONLY
    assert request.routing.priority == pb.PRIORITY_BATCH
    assert request.routing.ttft_slo.ToTimedelta().total_seconds() == 0.25
    assert request.timeout.seconds == 90


def test_every_request_has_an_id_of_its_own() -> None:
    assert build_request(request_id="mine").request_id == "mine"
    assert build_request().request_id != build_request().request_id


def test_messages_in_every_form() -> None:
    proto = pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="c")])
    parts = ["a", {"text": "b"}, {"image": {"uri": "https://x/y.png", "media_type": "image/png"}}]
    turns: list[MessageLike] = [
        "hi",
        {"role": "system", "content": "be brief"},
        proto,
        {"role": Role.USER, "content": parts},
        {"role": "tool", "content": "42", "tool_call_id": "t1"},
    ]
    request = build_request(messages=turns)
    roles = [Role(m.role) for m in request.messages]
    assert roles == [Role.USER, Role.SYSTEM, Role.ASSISTANT, Role.USER, Role.TOOL]
    assert request.messages[3].content[2].image.uri == "https://x/y.png"
    assert build_request(messages="hi").messages[0] == message("hi")


def test_tools_and_formats() -> None:
    request = build_request(
        tools=[{"name": "f", "parameters": {"type": "object"}}],
        tool_choice="f",
        response_format={"json_schema": {"type": "object"}},
        reasoning="low",
    )
    assert request.tools[0].parameters_json_schema == '{"type": "object"}'
    assert request.tool_choice.mode == pb.ToolChoice.MODE_REQUIRED
    assert request.tool_choice.name == "f"
    assert request.response_format.json_schema == '{"type": "object"}'
    assert request.reasoning.effort == pb.REASONING_EFFORT_LOW
    assert build_request(tool_choice="none").tool_choice.mode == pb.ToolChoice.MODE_NONE
    choice = build_request(response_format={"choice": ["a", "b"]}).response_format.choice
    assert list(choice.options) == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"residency": "moon"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "contents": "typo"}]},
        {"messages": [{"role": "user", "content": [{"video": "x"}]}]},
        {"tools": [{"name": "f", "params": {}}]},
        {"response_format": "yaml"},
        {"reasoning": "enormous"},
        {"timeout": math.inf},
        {"max_tokens": 1 << 40},
    ],
)
def test_unknown_names_are_refused_before_anything_is_sent(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        build_request(**wrong)  # type: ignore[arg-type]


def test_enums_read_as_people_write_them() -> None:
    assert Residency.parse("Local_Only") is Residency.LOCAL_ONLY
    assert f"{Residency.LOCAL_ONLY}" == "local_only"
    assert Residency.names()[0] == "local-first"
    with pytest.raises(ValueError, match="local-first, local-only"):
        Residency.parse("moon")
    assert str(Residency(99)) == "unknown_99", "a newer service does not break an older client"
