"""What a caller is told when a provider fails: one table from failure to Fault. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation, Work, invalid
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.config import Route

# Told to a caller when the provider limits us without saying for how long.
DEFAULT_RETRY_AFTER = 1.0

# How far the request got when each kind of failure came before any output. A refusal by status
# bills nothing; a failure in the middle may have.
_WORK = {
    FailureKind.UNREACHABLE: Work.NOT_DISPATCHED,
    FailureKind.BUSY: Work.NOT_DISPATCHED,
    FailureKind.REFUSED_KEY: Work.NOT_DISPATCHED,
    FailureKind.NO_CREDIT: Work.NOT_DISPATCHED,
    FailureKind.REFUSED_REQUEST: Work.NOT_DISPATCHED,
    FailureKind.TOO_LONG: Work.NOT_DISPATCHED,
    FailureKind.MISCONFIGURED: Work.NOT_DISPATCHED,
    FailureKind.FAILED: Work.MAYBE_BILLED,
    FailureKind.TIMED_OUT: Work.MAYBE_BILLED,
    FailureKind.BROKEN: Work.MAYBE_BILLED,
}


def to_fault(
    failure: ProviderFailure,
    route: Route,
    delivered: int,
    prompt_tokens: int,
    earlier: Iterable[ProviderFailure] = (),
) -> Fault:
    """The fault for a failure after `delivered` pieces of output.

    `prompt_tokens` is an estimate, told where the prompt was too long. `earlier` attempts may have
    been billed, though the last one was not.
    """
    work = Work.OUTPUT_SEEN if delivered else _WORK[failure.kind]
    if work is Work.NOT_DISPATCHED and any(
        _WORK[other.kind] is not Work.NOT_DISPATCHED for other in earlier
    ):
        work = Work.MAYBE_BILLED
    metadata = {"provider": route.profile.name}
    if failure.http_status is not None:
        metadata["http_status"] = str(failure.http_status)
    if failure.code:
        metadata["provider_code"] = failure.code
    if delivered:
        metadata["tokens_delivered"] = str(delivered)
    if failure.kind is FailureKind.REFUSED_REQUEST:
        fault = invalid([Violation(failure.field or "request", failure.message)])
        return Fault(
            fault.reason, fault.message, work=work, metadata=metadata, violations=fault.violations
        )
    if failure.kind is FailureKind.TOO_LONG:
        metadata |= {
            "prompt_tokens": str(prompt_tokens),
            "prompt_tokens_source": "estimated",
            "context_length": str(route.model.context_length),
        }
        return Fault(
            errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
            f"{route.name}: prompt and answer exceed the context: {failure.message}",
            work=work,
            metadata=metadata,
        )
    busy = failure.kind is FailureKind.BUSY
    retry_after = failure.retry_after
    if busy and retry_after is None:
        retry_after = DEFAULT_RETRY_AFTER
    return Fault(
        errors_pb2.ERROR_REASON_PROVIDER_ERROR,
        f"{route.profile.name}: {failure.message}",
        work=work,
        metadata=metadata,
        retry_after=retry_after,
        code=grpc.StatusCode.RESOURCE_EXHAUSTED if busy else grpc.StatusCode.UNAVAILABLE,
    )
