"""What was delivered, and the request for the rest."""

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.validation import generate_violations
from services.router.core.values import Resume
from services.router.resume import Delivered, can_resume, continued


def chunk(text: str, *ids: int) -> bytes:
    return pb.GenerateChunk(text=text, token_ids=ids).SerializeToString()


def request(**sampling) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="m", prompt="p", sampling=pb.Sampling(**sampling))


def test_the_rest_is_asked_for_after_what_was_delivered():
    rest = continued(request(max_tokens=10), Delivered([chunk("a", 1, 2), chunk("b", 3)]))
    assert list(rest.continuation.token_ids) == [1, 2, 3]
    assert rest.continuation.text == "ab"
    assert rest.sampling.max_tokens == 7


def test_a_second_loss_counts_from_the_original_request():
    original = request(max_tokens=10)
    original.continuation.token_ids.extend([9])
    original.continuation.text = "z"
    rest = continued(original, Delivered([chunk("a", 1), chunk("b", 2)]))
    assert list(rest.continuation.token_ids) == [9, 1, 2]
    assert rest.continuation.text == "zab"
    assert rest.sampling.max_tokens == 8


def test_nothing_is_left_when_every_token_was_delivered():
    assert continued(request(max_tokens=2), Delivered([chunk("ab", 1, 2)])) is None


def test_a_minimum_is_a_property_of_the_whole_answer_and_stays_valid():
    rest = continued(request(max_tokens=5, min_tokens=5), Delivered([chunk("abc", 1, 2, 3)]))
    assert (rest.sampling.max_tokens, rest.sampling.min_tokens) == (2, 5)
    assert list(generate_violations(rest)) == []


def test_the_caller_s_request_is_not_changed():
    original = request(max_tokens=5)
    continued(original, Delivered([chunk("a", 1)]))
    assert original == request(max_tokens=5)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ([], Resume.FRESH),
        ([chunk("a", 1)], Resume.AFTER_TOKENS),
        ([chunk("a")], Resume.AFTER_TEXT),
        ([chunk("")], Resume.FRESH),
    ],
)
def test_what_the_next_backend_must_be_able_to_do(chunks, kind):
    assert Delivered(chunks).kind is kind


def test_reasoning_cannot_be_gone_on_with():
    raw = pb.GenerateChunk(reasoning="hm").SerializeToString()
    assert not Delivered([raw]).complete


@pytest.mark.parametrize(
    ("fields", "able"),
    [
        ({}, True),
        ({"sampling": pb.Sampling(n=2)}, False),
        ({"sampling": pb.Sampling(n=1)}, True),
        ({"sampling": pb.Sampling(logprobs=1)}, False),
        ({"tools": [pb.Tool(name="f")]}, False),
        ({"response_format": pb.ResponseFormat(regex="a")}, False),
        ({"response_format": pb.ResponseFormat(text=pb.ResponseFormat.FreeText())}, True),
    ],
)
def test_which_requests_can_be_gone_on_with(fields, able):
    assert can_resume(pb.GenerateRequest(model="m", prompt="p", **fields)) is able
