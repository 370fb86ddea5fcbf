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


def test_an_answer_of_which_a_part_has_no_tokens_goes_on_after_its_text():
    # A provider's text without token ids, then an engine that went on after that text.
    engine = pb.GenerateChunk(first_token=4, text="b", token_ids=[5, 6]).SerializeToString()
    delivered = Delivered([chunk("a"), engine], tokens=3)
    assert delivered.kind is Resume.AFTER_TEXT
    rest = continued(request(max_tokens=10), delivered)
    assert not rest.continuation.token_ids
    assert rest.continuation.text == "ab"
    assert rest.sampling.max_tokens == 7


def test_tokens_delivered_as_text_alone_count_towards_the_maximum():
    rest = continued(request(max_tokens=10), Delivered([chunk("a"), chunk("b")], tokens=2))
    assert rest.sampling.max_tokens == 8


def test_a_given_continuation_by_text_alone_goes_on_by_text():
    original = request()
    original.continuation.text = "z"
    engine = pb.GenerateChunk(first_token=1, text="a", token_ids=[7]).SerializeToString()
    rest = continued(original, Delivered([engine], tokens=1))
    assert not rest.continuation.token_ids
    assert rest.continuation.text == "za"


def test_what_cannot_be_read_cannot_be_gone_on_with():
    assert not Delivered([chunk("a", 1), b"\xff\xff\xff"]).complete
