"""The faults that end a request in the router, with what each tells its caller. Pure."""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.router.core import values

RETRY_AFTER_S = 1.0

# Failures of a place, not of the request: another place may do better.
ELSEWHERE = frozenset(
    {
        errors_pb2.ERROR_REASON_BACKEND_LOST,
        errors_pb2.ERROR_REASON_DRAINING,
        errors_pb2.ERROR_REASON_MODEL_LOADING,
        errors_pb2.ERROR_REASON_OVERLOADED,
        errors_pb2.ERROR_REASON_PROVIDER_ERROR,
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        errors_pb2.ERROR_REASON_INTERNAL,
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED,
        # One dialect or engine lacks what another has; it says so before it does anything.
        errors_pb2.ERROR_REASON_UNSUPPORTED,
    }
)


# Said to the router: its caller would take it for a word about itself or its session.
TO_THE_ROUTER = frozenset(
    {
        errors_pb2.ERROR_REASON_BACKEND_LOST,
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED,
        errors_pb2.ERROR_REASON_DRAINING,
    }
)


def lost(message: str, delivered: int, *, work: Work) -> Fault:
    """The backend is gone and nobody could go on; says how many tokens had been sent."""
    return Fault(
        errors_pb2.ERROR_REASON_BACKEND_LOST,
        message,
        work=work,
        metadata={"tokens_delivered": str(delivered)},
        retry_after=None if work is Work.OUTPUT_SEEN else RETRY_AFTER_S,
    )


def too_large_to_forward(size: int, limit: int) -> Fault:
    """With what is added for the backend, the request no longer fits into a message."""
    return Fault(
        errors_pb2.ERROR_REASON_TOO_LARGE,
        f"the request has {size} bytes, more than the {limit} that a backend takes",
        metadata={"size": str(size), "limit": str(limit)},
    )


def overloaded(why: str) -> Fault:
    """Capacity exists, but none came free in time."""
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        f"no capacity came free in time: {why}",
        retry_after=RETRY_AFTER_S,
    )


def refused(verdict: values.Refuse, model: str) -> Fault:
    """The decision was to refuse."""
    if verdict.refusal is values.Refusal.MODEL_UNKNOWN:
        return Fault(
            errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
            f"{verdict.why}; ListModels lists what is served",
            metadata={"model": model},
        )
    return Fault(
        errors_pb2.ERROR_REASON_NO_BACKEND,
        verdict.why,
        retry_after=RETRY_AFTER_S,
        metadata={"model": model},
    )
