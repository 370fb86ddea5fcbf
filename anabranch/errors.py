"""What can go wrong for a caller, as exceptions that say what to do about it.

Turns a google.rpc.Status or a failed RPC into one AnabranchError. Does not decide
whether anything is repeated; that is the session's and the caller's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from anabranch.types import Answer

DOMAIN = "anabranch"


class Work(StrEnum):
    """How far a failed request got, which decides whether repeating it is safe."""

    NOT_DISPATCHED = "not_dispatched"
    MAYBE_BILLED = "maybe_billed"
    OUTPUT_SEEN = "output_seen"

    @property
    def may_retry(self) -> bool:
        """Whether repeating cannot run, or charge for, anything twice."""
        return self is Work.NOT_DISPATCHED


@dataclass(frozen=True)
class Violation:
    """One thing wrong with one field of a request."""

    field: str
    description: str


class AnabranchError(Exception):
    """A request that failed.

    `reason` is the name of an ErrorReason without its prefix, `code` the gRPC status,
    `metadata` what the service said besides, `retry_after` seconds to wait (None: the
    service named no time) and `partial` what had arrived of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        work: Work = Work.MAYBE_BILLED,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        quota: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.work = work
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.quota = tuple(quota)
        self.retry_after = retry_after
        self.partial: Answer | None = None

    @property
    def may_retry(self) -> bool:
        """Whether the same request may succeed later and repeating it is safe."""
        return self.work.may_retry and self.reason in _PASSING

    @property
    def tokens_delivered(self) -> int:
        """Output tokens that had arrived when the request failed."""
        text = self.metadata.get("tokens_delivered", "0")
        return int(text) if text.isdecimal() else 0

    @property
    def advice(self) -> str:
        """What to do, in one sentence; empty when there is nothing to say."""
        advice = _ADVICE.get(self.reason, "")
        if self.retry_after is not None and self.reason in _PASSING:
            advice = f"Try again in {self.retry_after:.3g} s."
        if self.work is Work.OUTPUT_SEEN:
            advice = (
                f"{self.tokens_delivered} tokens had arrived; repeating starts from the beginning."
            )
        return advice

    def __str__(self) -> str:
        faults = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        parts = [f"{self.reason}: {self.message}".rstrip(". ")]
        if faults:
            parts.append(f"({faults})")
        text = " ".join(parts) + "."
        return f"{text} {self.advice}".rstrip()


class InvalidRequestError(AnabranchError):
    """The request itself must change before it can succeed."""


class AuthenticationError(AnabranchError):
    """The credential is missing, bad, expired or revoked."""


class AccessDeniedError(AnabranchError):
    """The credential is good, but not for this."""


class NotFoundError(AnabranchError):
    """No such model, backend, client, token or request."""


class QuotaExceededError(AnabranchError):
    """The caller's own allowance is used up for now; `quota` says which."""


class OverloadedError(AnabranchError):
    """Capacity exists, but none came free in time."""


class UnavailableError(AnabranchError):
    """Nothing that could answer can be reached at the moment."""


class BackendLostError(UnavailableError):
    """The answer broke off: see `tokens_delivered` and `partial`."""


class SessionLostError(BackendLostError):
    """The connection was lost, and the session could not be gone on with in time."""


class SlowReaderError(AnabranchError):
    """The answer came faster than it was read, and the buffer is full."""


class DeadlineExceededError(AnabranchError):
    """The request's own time ran out."""


class RequestCancelledError(AnabranchError):
    """The request was cancelled, by its caller or by an operator."""


class InternalServiceError(AnabranchError):
    """A bug in a service; the message holds an incident id for its logs."""


_CLASSES: Mapping[str, type[AnabranchError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "CONTEXT_LENGTH_EXCEEDED": InvalidRequestError,
    "TOO_LARGE": InvalidRequestError,
    "REQUEST_ID_REUSED": InvalidRequestError,
    "ALREADY_EXISTS": InvalidRequestError,
    "UNSUPPORTED": InvalidRequestError,
    "SESSION_PROTOCOL": InternalServiceError,
    "CREDENTIAL_REJECTED": AuthenticationError,
    "ACCESS_DENIED": AccessDeniedError,
    "MODEL_NOT_FOUND": NotFoundError,
    "NOT_FOUND": NotFoundError,
    "QUOTA_EXCEEDED": QuotaExceededError,
    "OVERLOADED": OverloadedError,
    "NO_BACKEND": UnavailableError,
    "BACKEND_LOST": BackendLostError,
    "MODEL_LOADING": UnavailableError,
    "DRAINING": UnavailableError,
    "PROVIDER_ERROR": UnavailableError,
    "DEPENDENCY_UNAVAILABLE": UnavailableError,
    "SLOW_READER": SlowReaderError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "CANCELLED": RequestCancelledError,
    "INTERNAL": InternalServiceError,
    "SESSION_LOST": SessionLostError,
    "BUDGET_EXHAUSTED": QuotaExceededError,
    "VERSION_MISMATCH": InvalidRequestError,
    "IN_USE": InvalidRequestError,
    "MODEL_REFUSED": InvalidRequestError,
    "NOT_ENABLED": InvalidRequestError,
    "MODEL_ASLEEP": UnavailableError,
}

# Reasons that pass by themselves.
_PASSING = frozenset(
    {
        "QUOTA_EXCEEDED",
        "OVERLOADED",
        "NO_BACKEND",
        "BACKEND_LOST",
        "MODEL_LOADING",
        "DRAINING",
        "PROVIDER_ERROR",
        "DEPENDENCY_UNAVAILABLE",
        "SESSION_LOST",
        "BUDGET_EXHAUSTED",
        "MODEL_ASLEEP",
    }
)

_ADVICE: Mapping[str, str] = {
    "INVALID_REQUEST": "Correct the request and send it again.",
    "CONTEXT_LENGTH_EXCEEDED": "Shorten the prompt or lower max_tokens.",
    "TOO_LARGE": "Send less in one request.",
    "REQUEST_ID_REUSED": "Use a new request_id for a different request.",
    "UNSUPPORTED": "Leave that out, or choose another model.",
    "CREDENTIAL_REJECTED": "Check the token, or the client id and secret.",
    "ACCESS_DENIED": "Ask an administrator for the scope; repeating does not help.",
    "MODEL_NOT_FOUND": "See `anabranch models` for the names.",
    "QUOTA_EXCEEDED": "Try again later, or ask for a larger quota.",
    "OVERLOADED": "Try again later, or allow the cloud (residency).",
    "NO_BACKEND": "Try again later; see `anabranch backends`.",
    "BACKEND_LOST": "Try again.",
    "MODEL_LOADING": "Try again when the model is loaded.",
    "DRAINING": "Try again; another instance will answer.",
    "DEPENDENCY_UNAVAILABLE": "Check the address and that the service runs.",
    "PROVIDER_ERROR": "Try again later, or keep the request local (residency).",
    "SLOW_READER": "Read the chunks faster, or allow a larger max_buffered_bytes.",
    "DEADLINE_EXCEEDED": "Allow a longer timeout, or ask for less.",
    "INTERNAL": "Report the incident id to the operators.",
    "SESSION_LOST": "Check the connection to the service, then try again.",
    "BUDGET_EXHAUSTED": "Try again later, ask for a larger cloud budget, or keep it local.",
    "VERSION_MISMATCH": "Read the policy in force, change that, and update again.",
    "IN_USE": "Take it from whoever has it first.",
    "MODEL_REFUSED": "Use other files or options; nothing has changed.",
    "NOT_ENABLED": "Ask who runs the process for the setting that is named.",
    "MODEL_ASLEEP": "Ask another instance, or have it woken.",
}

# For a status without ErrorInfo, which only a transport or another server sends.
_REASONS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_REQUEST",
    grpc.StatusCode.OUT_OF_RANGE: "CONTEXT_LENGTH_EXCEEDED",
    grpc.StatusCode.UNAUTHENTICATED: "CREDENTIAL_REJECTED",
    grpc.StatusCode.PERMISSION_DENIED: "ACCESS_DENIED",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.ALREADY_EXISTS: "ALREADY_EXISTS",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED",
    grpc.StatusCode.UNAVAILABLE: "DEPENDENCY_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.UNIMPLEMENTED: "UNSUPPORTED",
}
_NEVER_DISPATCHED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_WORKS = {work.value: work for work in Work}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def error_for(reason: str, message: str, code: grpc.StatusCode, **rest: object) -> AnabranchError:
    """Makes the error of the class that belongs to `reason`."""
    return _CLASSES.get(reason, AnabranchError)(message, reason=reason, code=code, **rest)  # type: ignore[arg-type]


def error_from_status(status: status_pb2.Status) -> AnabranchError:
    """Translates the status of a request, with whatever details it carries."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    found = {detail.DESCRIPTOR.name: _unpack(status, detail) for detail in (info, bad, quota)}
    retry_after = retry.retry_delay.ToTimedelta().total_seconds() if _unpack(status, retry) else 0.0
    known = found["ErrorInfo"] and info.domain == DOMAIN
    metadata = dict(info.metadata) if known else {}
    default = Work.NOT_DISPATCHED if code in _NEVER_DISPATCHED else Work.MAYBE_BILLED
    said = metadata.pop("work", "")
    return error_for(
        info.reason if known else _REASONS.get(code, "INTERNAL"),
        status.message or code.name.lower().replace("_", " "),
        code,
        work=_WORKS.get(said, default),
        metadata=metadata,
        violations=[Violation(v.field, v.description) for v in bad.field_violations],
        quota=[(v.subject, v.description) for v in quota.violations],
        retry_after=retry_after or None,
    )


def error_from_rpc(error: grpc.aio.AioRpcError, target: str) -> AnabranchError:
    """Translates a failed RPC; `target` names the address in the text."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return error_from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    details = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        # gRPC's own text is a chain of causes; the last one is what people can act on.
        cause = details.rpartition("Failed to connect to remote host: ")[2] or "no connection"
        details = f"cannot reach {target}: {cause}"
    return error_from_status(status_pb2.Status(code=error.code().value[0], message=details))


def _unpack(status: status_pb2.Status, into: Message) -> bool:
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR):
            try:
                return bool(detail.Unpack(into))
            except DecodeError:
                return False
    return False
