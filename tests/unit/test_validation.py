"""Bad requests are refused with every violation named, good ones are not touched."""

import math

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.validation import generate_violations, validate_generate


def request(**fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"model": "m", "prompt": "hi", **fields})


def fields_of(message: pb.GenerateRequest) -> set[str]:
    return {violation.field for violation in generate_violations(message)}


def nested(levels: int) -> str:
    """A JSON schema of so many objects in each other."""
    return '{"not":' * (levels - 1) + "{}" + "}" * (levels - 1)


GOOD = [
    request(),
    request(prompt="", prompt_token_ids=[1, 2]),
    request(sampling=pb.Sampling(temperature=0, top_p=1, top_k=-1, n=8, logprobs=20)),
    request(response_format=pb.ResponseFormat(json_schema=nested(64))),
    request(sampling=pb.Sampling(stop=["a"] * 16, min_tokens=3, max_tokens=3)),
    pb.GenerateRequest(
        model="m",
        messages=[
            pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")]),
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="1", name="f")]),
            pb.Message(role=pb.ROLE_TOOL, tool_call_id="1", content=[pb.ContentPart(text="42")]),
        ],
    ),
]


@pytest.mark.parametrize("message", GOOD)
def test_a_good_request_passes(message):
    assert fields_of(message) == set()


BAD = [
    (request(model=""), "model"),
    (request(model="m" * 300), "model"),
    (request(prompt=""), "messages"),
    (request(prompt_token_ids=[1]), "messages"),
    (request(prompt="", prompt_token_ids=[-1]), "prompt_token_ids"),
    (request(prompt="x" * (2 * 1024 * 1024 + 1)), "messages"),
    (pb.GenerateRequest(model="m", messages=[pb.Message()]), "messages[0].role"),
    (
        pb.GenerateRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER)]),
        "messages[0].content",
    ),
    (
        pb.GenerateRequest(
            model="m", messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart()])]
        ),
        "messages[0].content[0]",
    ),
    (
        pb.GenerateRequest(
            model="m",
            messages=[
                pb.Message(
                    role=pb.ROLE_USER,
                    content=[
                        pb.ContentPart(
                            image=pb.Image(uri="http://127.0.0.1/x", media_type="image/png")
                        )
                    ],
                )
            ],
        ),
        "messages[0].content[0].image.uri",
    ),
    (request(sampling=pb.Sampling(temperature=math.nan)), "sampling.temperature"),
    (request(sampling=pb.Sampling(temperature=2.5)), "sampling.temperature"),
    (request(sampling=pb.Sampling(temperature=-0.1)), "sampling.temperature"),
    (request(sampling=pb.Sampling(top_p=0)), "sampling.top_p"),
    (request(sampling=pb.Sampling(top_p=math.inf)), "sampling.top_p"),
    (request(sampling=pb.Sampling(min_p=1.5)), "sampling.min_p"),
    (request(sampling=pb.Sampling(repetition_penalty=0)), "sampling.repetition_penalty"),
    (request(sampling=pb.Sampling(max_tokens=0)), "sampling.max_tokens"),
    (request(sampling=pb.Sampling(top_k=-2)), "sampling.top_k"),
    (request(sampling=pb.Sampling(n=0)), "sampling.n"),
    (request(sampling=pb.Sampling(n=1_000_000)), "sampling.n"),
    (request(sampling=pb.Sampling(logprobs=1_000)), "sampling.logprobs"),
    (request(sampling=pb.Sampling(min_tokens=-1)), "sampling.min_tokens"),
    (request(sampling=pb.Sampling(min_tokens=5, max_tokens=4)), "sampling.min_tokens"),
    (request(sampling=pb.Sampling(stop=["a"] * 17)), "sampling.stop"),
    (request(sampling=pb.Sampling(stop=[""])), "sampling.stop"),
    (request(tools=[pb.Tool(name="no spaces")]), "tools[0].name"),
    (request(tools=[pb.Tool(name="f"), pb.Tool(name="f")]), "tools[1].name"),
    (request(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)), "tool_choice.mode"),
    (request(response_format=pb.ResponseFormat(regex="a" * 100_000)), "response_format.regex"),
    (
        request(response_format=pb.ResponseFormat(choice=pb.ResponseFormat.Choice())),
        "response_format.choice.options",
    ),
    (
        request(
            response_format=pb.ResponseFormat(
                choice=pb.ResponseFormat.Choice(options=["x" * 1024] * 65)
            )
        ),
        "response_format.choice.options",
    ),
    (request(response_format=pb.ResponseFormat(json_schema="{")), "response_format.json_schema"),
    (request(response_format=pb.ResponseFormat(json_schema="[]")), "response_format.json_schema"),
    (
        request(response_format=pb.ResponseFormat(json_schema=nested(65))),
        "response_format.json_schema",
    ),
    (
        request(response_format=pb.ResponseFormat(json_schema=nested(9000))),
        "response_format.json_schema",
    ),
    (
        request(tools=[pb.Tool(name="f", parameters_json_schema=nested(300))]),
        "tools[0].parameters_json_schema",
    ),
    (request(continuation=pb.Continuation(token_ids=[-1])), "continuation.token_ids"),
    (
        request(continuation=pb.Continuation(token_ids=[1] * 1_048_577)),
        "continuation.token_ids",
    ),
    (
        request(continuation=pb.Continuation(text="x" * (2 * 1024 * 1024 + 1))),
        "continuation.text",
    ),
    (request(routing=pb.Routing(residency=99)), "routing.residency"),
    (request(routing=pb.Routing(max_cost_microusd=-1)), "routing.max_cost_microusd"),
    (request(request_id="a b"), "request_id"),
    (request(request_id="x" * 129), "request_id"),
    (request(labels={"": "x"}), "labels"),
    (request(labels={str(i): "x" for i in range(17)}), "labels"),
]


@pytest.mark.parametrize(("message", "field"), BAD)
def test_a_bad_field_is_named(message, field):
    assert field in fields_of(message)


def test_all_violations_come_at_once():
    message = request(model="", request_id=" ", sampling=pb.Sampling(n=0, temperature=math.nan))
    with pytest.raises(Fault) as caught:
        validate_generate(message)
    named = {violation.field for violation in caught.value.violations}
    assert named == {"model", "request_id", "sampling.n", "sampling.temperature"}
