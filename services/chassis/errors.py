"""The domain error of every service, and the only place where it becomes a gRPC status.

Servicers and handlers raise `Fault`; interceptors and sessions call `to_status`.
Nothing else builds a status, so every failure carries exactly one ErrorInfo and
says how far the failed work got. What peers said comes back through
`fault_from_rpc_error` and `fault_from_status`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from anabranch.v1 import errors_pb2
from anabranch.v1.errors_pb2 import ErrorReason

_log = logging.getLogger(__name__)

DOMAIN = "anabranch"
_PREFIX = "ERROR_REASON_"
# A status of a plain RPC travels in HTTP/2 trailers, of which many clients accept 8 KB and ours
# 32 KB; past that the caller sees a broken stream instead of the error. What callers sent may be
# quoted in it, so nothing here is short by itself.
_LONGEST_MESSAGE = 512  # characters
_LONGEST_TEXT = 256  # characters, of a metadata value or of a part of a violation
_VIOLATIONS_BYTES = 3072


MODEL_LEFT = "model_left"
"""The `cause` in a BACKEND_LOST's metadata where an operator took the model out of service."""


class Work(StrEnum):
    """How far a failed request got: decides whether repeating it is safe."""

    NOT_DISPATCHED = "not_dispatched"
    MAYBE_BILLED = "maybe_billed"
    OUTPUT_SEEN = "output_seen"


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a request: the path of the field, and what it must be."""

    field: str
    description: str


_CODES: Mapping[int, grpc.StatusCode] = {
    errors_pb2.ERROR_REASON_INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED: grpc.StatusCode.OUT_OF_RANGE,
    errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED: grpc.StatusCode.UNAUTHENTICATED,
    errors_pb2.ERROR_REASON_ACCESS_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    errors_pb2.ERROR_REASON_MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    errors_pb2.ERROR_REASON_QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors_pb2.ERROR_REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors_pb2.ERROR_REASON_NO_BACKEND: grpc.StatusCode.UNAVAILABLE,
    errors_pb2.ERROR_REASON_BACKEND_LOST: grpc.StatusCode.UNAVAILABLE,
    errors_pb2.ERROR_REASON_MODEL_LOADING: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_SESSION_PROTOCOL: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_REQUEST_ID_REUSED: grpc.StatusCode.ALREADY_EXISTS,
    errors_pb2.ERROR_REASON_UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    errors_pb2.ERROR_REASON_CANCELLED: grpc.StatusCode.CANCELLED,
    errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors_pb2.ERROR_REASON_INTERNAL: grpc.StatusCode.INTERNAL,
    errors_pb2.ERROR_REASON_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors_pb2.ERROR_REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
    errors_pb2.ERROR_REASON_PROVIDER_ERROR: grpc.StatusCode.UNAVAILABLE,
    errors_pb2.ERROR_REASON_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    errors_pb2.ERROR_REASON_ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    errors_pb2.ERROR_REASON_SLOW_READER: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    errors_pb2.ERROR_REASON_SESSION_LOST: grpc.StatusCode.ABORTED,
    errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors_pb2.ERROR_REASON_VERSION_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_MODEL_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_NOT_ENABLED: grpc.StatusCode.FAILED_PRECONDITION,
    errors_pb2.ERROR_REASON_MODEL_ASLEEP: grpc.StatusCode.UNAVAILABLE,
}

# A peer that sends no ErrorInfo (a proxy in between, the gRPC runtime itself)
# is understood by its status alone; UNKNOWN never leaves a service.
_REASONS_BY_CODE: Mapping[grpc.StatusCode, ErrorReason] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors_pb2.ERROR_REASON_INVALID_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED: errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED,
    grpc.StatusCode.PERMISSION_DENIED: errors_pb2.ERROR_REASON_ACCESS_DENIED,
    grpc.StatusCode.NOT_FOUND: errors_pb2.ERROR_REASON_NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: errors_pb2.ERROR_REASON_ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors_pb2.ERROR_REASON_OVERLOADED,
    grpc.StatusCode.UNIMPLEMENTED: errors_pb2.ERROR_REASON_UNSUPPORTED,
    grpc.StatusCode.CANCELLED: errors_pb2.ERROR_REASON_CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE: errors_pb2.ERROR_REASON_BACKEND_LOST,
}

_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def reason_name(reason: int) -> str:
    """The name that travels in ErrorInfo: the enum's value without its prefix."""
    return str(ErrorReason.Name(reason)).removeprefix(_PREFIX)


def reason_from_name(name: str) -> ErrorReason:
    """The enum value of a travelling name; UNSPECIFIED for one from a newer peer."""
    try:
        return cast(ErrorReason, ErrorReason.Value(_PREFIX + name))
    except ValueError:
        return errors_pb2.ERROR_REASON_UNSPECIFIED


class Fault(Exception):
    """A failure that the caller is told about.

    `message` is public: it names no secret, no host path and no internals.
    `retry_after` is in seconds and becomes RetryInfo; `violations` become
    BadRequest; `quota` holds (subject, description) pairs for QuotaFailure.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        work: Work = Work.NOT_DISPATCHED,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
        quota: Sequence[tuple[str, str]] = (),
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.work = work
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.quota = tuple(quota)
        self.code = code or _CODES.get(reason, grpc.StatusCode.INTERNAL)

    def __repr__(self) -> str:
        return f"Fault({reason_name(self.reason)}, {self.message!r}, work={self.work})"

    def after(self, work: Work) -> Fault:
        """The same failure, reached later: `work` replaced when it is further along."""
        order = list(Work)
        if order.index(work) <= order.index(self.work):
            return self
        return Fault(
            self.reason,
            self.message,
            work=work,
            metadata=self.metadata,
            violations=self.violations,
            retry_after=self.retry_after,
            quota=self.quota,
            code=self.code,
        )


def invalid(violations: Sequence[Violation]) -> Fault:
    """INVALID_ARGUMENT for a request with these faults, all named at once."""
    listed = "; ".join(f"{v.field}: {v.description}" for v in violations[:5])
    more = f" (and {len(violations) - 5} more)" if len(violations) > 5 else ""
    return Fault(
        errors_pb2.ERROR_REASON_INVALID_REQUEST,
        f"the request is not valid: {listed}{more}",
        violations=violations,
    )


def internal(exc: BaseException) -> Fault:
    """INTERNAL for a bug of ours. The trace goes to the log under an incident id."""
    incident = secrets.token_hex(6)
    _log.error("unexpected failure", exc_info=exc, extra={"incident": incident})
    return Fault(
        errors_pb2.ERROR_REASON_INTERNAL,
        f"internal error; incident {incident} in the service's log",
        work=Work.MAYBE_BILLED,
        metadata={"incident": incident},
    )


def fault_of(exc: BaseException) -> Fault:
    """Translates what a handler raised. Anything unforeseen is a bug of ours."""
    if isinstance(exc, Fault):
        return exc
    if isinstance(exc, grpc.aio.AioRpcError):
        return fault_from_rpc_error(exc)
    if isinstance(exc, TimeoutError):
        return Fault(
            errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
            "the request's time ran out",
            work=Work.MAYBE_BILLED,
        )
    if isinstance(exc, asyncio.CancelledError):
        raise exc
    return internal(exc)


def to_status(fault: Fault) -> status_pb2.Status:
    """The google.rpc.Status of a fault, with exactly one ErrorInfo.

    Long texts are cut and of very many violations only the first are listed, so that the whole
    fits into trailers.
    """
    message = _cut(fault.message, _LONGEST_MESSAGE)
    status = status_pb2.Status(code=fault.code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason_name(fault.reason), domain=DOMAIN)
    for key, value in fault.metadata.items():
        info.metadata[key] = _cut(value, _LONGEST_TEXT)
    info.metadata["work"] = str(fault.work)
    _add(status, info)
    if fault.violations:
        _add(status, _bad_request(fault.violations))
    if fault.quota:
        _add(
            status,
            error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=s, description=d)
                    for s, d in fault.quota
                ]
            ),
        )
    if fault.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(max(fault.retry_after, 0.0) * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    listed = error_details_pb2.BadRequest()
    for violation in violations:
        if listed.ByteSize() > _VIOLATIONS_BYTES:
            break
        listed.field_violations.add(
            field=_cut(violation.field, _LONGEST_TEXT),
            description=_cut(violation.description, _LONGEST_TEXT),
        )
    return listed


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _add(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


def fault_from_status(status: status_pb2.Status) -> Fault:
    """Reads a status that a peer sent, details included."""
    code = _CODES_BY_NUMBER.get(status.code, grpc.StatusCode.INTERNAL)
    reason: ErrorReason = errors_pb2.ERROR_REASON_UNSPECIFIED
    work = Work.MAYBE_BILLED
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    quota: list[tuple[str, str]] = []
    retry_after: float | None = None
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        limit = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            reason = reason_from_name(info.reason)
            metadata = dict(info.metadata)
            said = metadata.pop("work", "")
            work = Work(said) if said in set(Work) else Work.MAYBE_BILLED
        elif packed.Unpack(bad):
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif packed.Unpack(limit):
            quota = [(v.subject, v.description) for v in limit.violations]
        elif packed.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if reason == errors_pb2.ERROR_REASON_UNSPECIFIED:
        reason = _REASONS_BY_CODE.get(code, errors_pb2.ERROR_REASON_INTERNAL)
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
        code = grpc.StatusCode.INTERNAL
    return Fault(
        reason,
        status.message or code.name,
        work=work,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
        quota=quota,
        code=code,
    )


def fault_from_rpc_error(error: grpc.aio.AioRpcError) -> Fault:
    """Reads the status of a failed call to a peer."""
    trailing = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == "grpc-status-details-bin":
            status = status_pb2.Status()
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
            return fault_from_status(status)
    return fault_from_status(
        status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    )
