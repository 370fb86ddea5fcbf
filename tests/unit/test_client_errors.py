"""Statuses as exceptions, and answers put together from chunks."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from anabranch import errors
from anabranch.backoff import reconnect_delay
from anabranch.errors import Work, error_for, error_from_status
from anabranch.transcript import Transcript
from anabranch.types import as_dict
from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb


def status(code: grpc.StatusCode, message: str, *details: object) -> status_pb2.Status:
    made = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="anabranch", metadata=metadata)


REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
    if not name.endswith("UNSPECIFIED")
]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_class_of_its_own_kind(reason: str) -> None:
    error = error_for(reason, "x", grpc.StatusCode.UNKNOWN)
    assert type(error) is not errors.AnabranchError
    assert error.reason == reason


def test_all_details_are_read() -> None:
    error = error_from_status(
        status(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "out of tokens",
            info("QUOTA_EXCEEDED", work="not_dispatched", tenant="t"),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
            error_details_pb2.QuotaFailure(
                violations=[{"subject": "tenant:t", "description": "1000 tokens a minute"}]
            ),
        )
    )
    assert isinstance(error, errors.QuotaExceededError)
    assert error.retry_after == 2.5
    assert error.metadata == {"tenant": "t"}
    assert error.quota == (("tenant:t", "1000 tokens a minute"),)
    assert error.may_retry
    assert str(error) == "QUOTA_EXCEEDED: out of tokens. Try again in 2.5 s."


def test_violations_are_listed_and_invalid_requests_are_not_retried() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="sampling.top_p", description="must be above 0")
    error = error_from_status(
        status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "the request is not valid",
            info("INVALID_REQUEST", work="not_dispatched"),
            bad,
        )
    )
    assert isinstance(error, errors.InvalidRequestError)
    assert not error.may_retry
    assert "(sampling.top_p: must be above 0)" in str(error)


@pytest.mark.parametrize("work", list(Work))
def test_only_undispatched_work_may_be_repeated(work: Work) -> None:
    error = error_from_status(
        status(grpc.StatusCode.UNAVAILABLE, "lost", info("BACKEND_LOST", work=work.value))
    )
    assert error.work is work
    assert error.may_retry is (work is Work.NOT_DISPATCHED)


def test_a_status_without_our_details_is_still_understood() -> None:
    error = error_from_status(status(grpc.StatusCode.UNAUTHENTICATED, "no"))
    assert isinstance(error, errors.AuthenticationError)
    assert error.work is Work.NOT_DISPATCHED
    foreign = error_details_pb2.ErrorInfo(reason="THEIRS", domain="example.com")
    error = error_from_status(status(grpc.StatusCode.UNAVAILABLE, "down", foreign))
    assert error.reason == "DEPENDENCY_UNAVAILABLE"
    assert error.work is Work.MAYBE_BILLED
    newer = error_from_status(status(grpc.StatusCode.ABORTED, "new", info("FROM_THE_FUTURE")))
    assert newer.reason == "FROM_THE_FUTURE"


def chunk(**fields: object) -> bytes:
    return pb.GenerateChunk(**fields).SerializeToString()  # type: ignore[arg-type]


def test_choices_and_tool_calls_are_put_together() -> None:
    transcript = Transcript("r", choices=2)
    call = pb.ToolCall(index=0, id="c1", name="f", arguments='{"a"')
    transcript.add(chunk(index=1, text="one", request_id="theirs"))
    transcript.add(chunk(index=0, reasoning="hm", tool_calls=[call]))
    transcript.add(chunk(index=0, tool_calls=[pb.ToolCall(index=0, arguments=": 1}")]))
    transcript.add(chunk(index=1, text=" two", finish_reason=1, matched_stop="#"))
    transcript.add(chunk(index=0, finish_reason=3, usage=pb.Usage(completion_tokens=4)))
    transcript.verify()
    answer = transcript.answer
    assert answer.tool_calls[0].parsed() == {"a": 1}
    assert (answer.reasoning, answer.choices[1].text) == ("hm", "one two")
    assert answer.choices[1].matched_stop == "#"
    assert answer.request_id == "theirs"
    assert answer.message.tool_calls[0].arguments == '{"a": 1}'
    assert as_dict(answer)["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], errors.BackendLostError),
        ([chunk(text="a")], errors.BackendLostError),
        ([b"\xff\xff"], errors.InternalServiceError),
        ([chunk(text="a", finish_reason=6)], errors.BackendLostError),
        ([chunk(text="a", finish_reason=5)], errors.RequestCancelledError),
    ],
)
def test_an_answer_is_never_cut_short_silently(
    chunks: list[bytes], expected: type[Exception]
) -> None:
    transcript = Transcript("r")

    def read_all() -> None:
        for raw in chunks:
            transcript.add(raw)
        transcript.verify()

    with pytest.raises(expected):
        read_all()


def test_a_missing_choice_is_noticed() -> None:
    transcript = Transcript("r", choices=2)
    transcript.add(chunk(index=0, finish_reason=1))
    with pytest.raises(errors.BackendLostError):
        transcript.verify()


def test_reconnects_spread_and_stay_bounded() -> None:
    assert reconnect_delay(0, lambda: 1.0) == 0.05
    assert [reconnect_delay(n, lambda: 1.0) for n in (1, 2, 3, 20)] == [0.1, 0.2, 0.4, 2.0]
    assert reconnect_delay(3, lambda: 0.0) == 0.2
