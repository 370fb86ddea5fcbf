"""The faults that end a request in the router, with what each tells its caller. Pure."""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.router.core import values
from services.router.core.line import Reason

RETRY_AFTER_S = 1.0
LONGEST_RETRY_AFTER_S = 60.0
BUDGET_RETRY_AFTER_S = 60.0

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
        # Taken out of service, or asleep, since the router was told of it.
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        errors_pb2.ERROR_REASON_MODEL_ASLEEP,
        # One dialect or engine lacks what another has; it says so before it does anything.
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        # A cloud proxy's own budget, that is: another place has other money, or needs none.
        errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
    }
)


# A backend that was lost, or is about to leave, said nothing about the request.
LOSSES = frozenset({errors_pb2.ERROR_REASON_BACKEND_LOST, errors_pb2.ERROR_REASON_DRAINING})

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


def backend_lost(message: str, work: Work = Work.MAYBE_BILLED) -> Fault:
    """A backend, or the session to it, is gone: what its requests are told."""
    return Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, message, work=work)


def too_large_to_forward(size: int, limit: int) -> Fault:
    """With what is added for the backend, the request no longer fits into a message."""
    return Fault(
        errors_pb2.ERROR_REASON_TOO_LARGE,
        f"the request has {size} bytes, more than the {limit} that a backend takes",
        metadata={"size": str(size), "limit": str(limit)},
    )


_WHY_NOT_WAITING = {
    Reason.FULL: "the waiting line has no place left for its priority",
    Reason.TOO_LATE: "its own limit for the first token has passed, or will have",
    Reason.WAITED_TOO_LONG: "the longest wait that the policy allows is over, or will be",
    Reason.STANDING_LINE: "the line stands; who waits least urgently was let go",
}


def overloaded(reason: Reason, retry_after: float) -> Fault:
    """Capacity exists, but none came free in time; `retry_after` is in seconds."""
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        f"no capacity came free in time: {_WHY_NOT_WAITING[reason]}",
        retry_after=min(max(retry_after, RETRY_AFTER_S), LONGEST_RETRY_AFTER_S),
        metadata={"cause": reason.value},
    )


def kept_out(reason: Reason, retry_after: float, *, by_deadline: bool) -> Fault:
    """It may not wait, or no longer; `by_deadline`: all its time would have been for waiting."""
    if by_deadline and reason is Reason.TOO_LATE:
        return out_of_time()
    return overloaded(reason, retry_after)


def out_of_time() -> Fault:
    """The caller's time ended in the line: whoever says so here knows that nothing ran."""
    return Fault(
        errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        "the request's time ran out while it waited for a free slot",
    )


def no_budget(why: str) -> Fault:
    """Only the cloud could take it, and there is no money for that."""
    return Fault(
        errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        why,
        retry_after=BUDGET_RETRY_AFTER_S,
        quota=[("cloud budget", why)],
    )


def kept_from_cloud(model: str) -> Fault:
    """Only the cloud could answer a small question, and the tenant's prompts leave masked only."""
    return Fault(
        errors_pb2.ERROR_REASON_ACCESS_DENIED,
        "embeddings and token counts are not asked of the cloud for a tenant whose prompts are"
        f" masked, and no local backend of {model!r} is ready",
        metadata={"model": model},
    )


def not_charged(model: str) -> Fault:
    """Only the cloud could embed it, and the caller's money is limited; waiting does not help."""
    why = (
        "embeddings are not charged to budgets, so the cloud makes none for a caller with a cloud"
        f" budget or a quota of money, and no local backend of {model!r} is ready"
    )
    return Fault(
        errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        why,
        metadata={"model": model},
        quota=[("cloud budget", why)],
    )


def refused(verdict: values.Refuse, model: str) -> Fault:
    """The decision was to refuse."""
    if verdict.refusal is values.Refusal.MODEL_UNKNOWN:
        return Fault(
            errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
            f"{verdict.why}; ListModels lists what is served",
            metadata={"model": model},
        )
    if verdict.refusal is values.Refusal.NO_BUDGET:
        return no_budget(verdict.why)
    if verdict.refusal is values.Refusal.NOT_ALLOWED:
        return Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, verdict.why)
    return Fault(
        errors_pb2.ERROR_REASON_NO_BACKEND,
        verdict.why,
        retry_after=RETRY_AFTER_S,
        metadata={"model": model},
    )
