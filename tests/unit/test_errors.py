"""Faults become statuses and come back whole."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from anabranch.v1 import errors_pb2
from services.chassis.errors import (
    Fault,
    Violation,
    Work,
    fault_from_status,
    fault_of,
    invalid,
    to_status,
)


def test_a_fault_survives_the_wire():
    fault = Fault(
        errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
        "too much",
        work=Work.MAYBE_BILLED,
        metadata={"tenant": "t"},
        violations=[Violation("a", "b")],
        retry_after=1.5,
        quota=[("tenant:t", "tokens per minute")],
    )
    back = fault_from_status(to_status(fault))
    for name in ("reason", "message", "work", "metadata", "violations", "retry_after", "quota"):
        assert getattr(back, name) == getattr(fault, name)
    assert back.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_exactly_one_error_info_names_domain_and_work():
    status = to_status(Fault(errors_pb2.ERROR_REASON_NO_BACKEND, "none", retry_after=1))
    infos = [d for d in status.details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    info = error_details_pb2.ErrorInfo()
    assert len(infos) == 1
    assert infos[0].Unpack(info)
    assert (info.reason, info.domain) == ("NO_BACKEND", "anabranch")
    assert info.metadata["work"] == "not_dispatched"


def test_every_violation_is_named():
    fault = invalid([Violation(f"f{i}", "bad") for i in range(9)])
    assert len(to_status(fault).details) == 2
    assert len(fault.violations) == 9
    assert "4 more" in fault.message


def test_a_bug_tells_no_internals():
    fault = fault_of(KeyError("/secret/path"))
    assert fault.code is grpc.StatusCode.INTERNAL
    assert "secret" not in fault.message
    assert fault.metadata["incident"] in fault.message


def test_unknown_from_a_peer_does_not_leave_as_unknown():
    assert fault_from_status(status_pb2.Status(code=2, message="x")).code is (
        grpc.StatusCode.INTERNAL
    )


@pytest.mark.parametrize("later", [Work.MAYBE_BILLED, Work.OUTPUT_SEEN])
def test_work_only_moves_forward(later):
    fault = Fault(errors_pb2.ERROR_REASON_INTERNAL, "x", work=later)
    assert fault.after(Work.NOT_DISPATCHED).work is later
    assert Fault(errors_pb2.ERROR_REASON_INTERNAL, "x").after(later).work is later


def test_the_longest_error_still_fits_into_trailers():
    many = [Violation(f"messages[{i}].content", "must not be empty") for i in range(4000)]
    fault = invalid(many)
    long = Fault(
        fault.reason,
        "é" * 10**6,
        metadata={"model": "m" * 10**6},
        violations=[Violation("f" * 10**6, "d" * 10**6)] * 4000,
    )
    for each in (fault, long):
        assert to_status(each).ByteSize() < 8 * 1024
    back = fault_from_status(to_status(fault))
    assert "and 3995 more" in back.message
    assert back.violations[0].field == "messages[0].content"
