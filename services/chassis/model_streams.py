"""The requests in progress of one process: admission, deadlines, cancellation, counting.

Every request, whichever RPC brought it, is an `ActiveRequest` between its
handler and its outlet. Knows nothing of gRPC messages beyond the request itself.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2, generation_pb2
from services.chassis.audit.requests import RequestAudit, WatchedRequest
from services.chassis.caller_sampling import CallerSampling
from services.chassis.deadlines import Deadlines, Due
from services.chassis.errors import Fault, Violation, Work, fault_of, invalid
from services.chassis.model_handler import CallContext, Cancel, ModelHandler, Outlet
from services.chassis.principal import Principal
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.metered import MeteredRequest
from services.chassis.request_ids import RequestIds
from services.chassis.validation import validate_generate


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of requests and sessions; seconds and bytes.

    `session_buffer_bytes` waits at most for the caller of a session, and
    `stream_buffer_bytes` for that of a plain RPC, after joining; a chunk more ends either.
    """

    default_timeout: float = 600.0
    max_timeout: float = 3600.0
    max_message_bytes: int = 4 * 1024 * 1024
    session_buffer_bytes: int = 16 * 1024 * 1024
    stream_buffer_bytes: int = 256 * 1024
    write_stall: float = 10.0
    load_busy_interval: float = 0.05
    load_idle_interval: float = 1.0


class Onward(Protocol):
    """As Outlet.chunk."""

    def __call__(self, raw: bytes, *, last: bool, tokens: int) -> None: ...


class ActiveRequest:
    """One request between handler and wire: passes output on until it has ended once."""

    __slots__ = ("_cancel", "_due", "_owner", "_target", "_watched", "chunks", "ended")

    def __init__(self, owner: ActiveRequests, target: Outlet) -> None:
        self._owner = owner
        self._target = target
        self._watched: WatchedRequest | None = None
        self._cancel: Cancel | None = None
        self._due: Due | None = None
        self.ended = False
        self.chunks = 0

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self.ended:
            return
        self.chunks += 1
        if last:
            self._end()
        self._target.chunk(raw, last=last, tokens=tokens)

    def fail(self, fault: Fault) -> None:
        if self.ended:
            return
        self._end()
        self._target.fail(fault.after(Work.OUTPUT_SEEN) if self.chunks else fault)

    def cancel(self) -> None:
        """The caller wants no more: the handler stops, and says so through the outlet."""
        if self._cancel is not None:
            self._cancel()

    def abandon(self) -> None:
        """The caller is gone: the handler stops, and nobody hears of it."""
        if self.ended:
            return
        if self._watched is not None:
            self._watched.abandoned()
        cancel = self._cancel
        self._end()
        if cancel is not None:
            cancel()

    @property
    def onward(self) -> Onward:
        """The target's own `chunk`, for output that need not be watched here: after the first
        chunk, before the last, and not once the request was cancelled."""
        return self._target.chunk

    def watch(self, watched: WatchedRequest | None) -> None:
        """What is to be written to the audit trail stands before the target."""
        if watched is not None:
            self._target = self._watched = watched

    def meter(self, gate: QuotaGate) -> MeteredRequest:
        """Puts a meter between it and its target. Before `begin`."""
        meter = MeteredRequest(gate, self, self._target)
        self._target = meter
        return meter

    def begin(self, cancel: Cancel, deadlines: Deadlines, deadline: float, now: float) -> None:
        """Called once the handler has taken the request, or the meter in front of it."""
        if not self.ended:
            self._cancel = cancel
            self._due = deadlines.add(self, deadline, now)

    def expire(self) -> None:
        """The request's time is over."""
        if self.ended:
            return
        cancel = self._cancel
        self.fail(
            Fault(
                errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
                "the request's time ran out",
                work=Work.MAYBE_BILLED,
            )
        )
        if cancel is not None:
            cancel()

    def _end(self) -> None:
        self.ended = True
        # What is over points at its handler no more, which points here: so both are freed
        # at once, and none is left to the garbage collector.
        self._cancel = None
        if self._due is not None:
            self._due.discard(self)
            self._due = None
        self._owner.remove(self)


class ActiveRequests:
    """All requests in progress, and the door that new ones come through."""

    def __init__(
        self,
        handler: ModelHandler,
        limits: StreamLimits,
        *,
        remember_ids: int = 0,
        audit: RequestAudit | None = None,
        quotas: QuotaGate | None = None,
        sampling: CallerSampling | None = None,
    ) -> None:
        self._handler = handler
        self._sampling = sampling
        self._audit = audit
        self._quotas = quotas
        self.limits = limits
        self._active: set[ActiveRequest] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._bodies = RequestIds(remember_ids) if remember_ids else None
        self._deadlines: Deadlines | None = None
        # For ids only; asking the system for each would cost a call of its own.
        self._random = random.Random()  # noqa: S311
        self.loading = True
        self.draining = False

    def __len__(self) -> int:
        return len(self._active)

    def remove(self, request: ActiveRequest) -> None:
        self._active.discard(request)
        if not self._active:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when nothing is in progress."""
        await self._idle.wait()

    def check_open(self) -> None:
        """Raises Fault MODEL_LOADING or DRAINING when nothing new is taken."""
        if self.draining:
            raise Fault(
                errors_pb2.ERROR_REASON_DRAINING,
                "this process is shutting down; ask another",
                retry_after=0.1,
            )
        if self.loading:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING,
                "the model is still being loaded",
                retry_after=2.0,
            )

    def open(
        self,
        raw: bytes,
        target: Outlet,
        caller: Principal,
        *,
        traceparent: str = "",
        time_remaining: float | None = None,
        mask: frozenset[int] = frozenset(),
    ) -> ActiveRequest:
        """Starts a serialised GenerateRequest; a refusal goes to the target as well.

        Never raises for what the request is; the target hears of it.
        """
        active = ActiveRequest(self, target)
        self._active.add(active)
        self._idle.clear()
        try:
            self.check_open()
            # Kept, since asking for the loop costs a system call.
            deadlines = self._deadlines or self._running()
            request = self._read(raw, caller)
            if self._audit is not None:
                active.watch(self._audit.watch(request, caller, target))
            caller.check_model(request.model)
            now = deadlines.now()
            deadline = now + self._allowed(request, time_remaining)
            if traceparent and self._sampling is not None:
                traceparent = self._sampling.taken(traceparent, caller)
            context = CallContext(caller, request.request_id, deadline, traceparent, mask)
            if caller.quotas and self._quotas is not None:
                meter = active.meter(self._quotas)
                active.begin(meter.cancel, deadlines, deadline, now)
                meter.open(self._handler, request, context)
            else:
                active.begin(self._handler.open(request, context, active), deadlines, deadline, now)
        except Exception as exc:  # noqa: BLE001 - the edge: whatever a handler raises becomes a status
            active.fail(fault_of(exc))
        return active

    def _running(self) -> Deadlines:
        self._deadlines = Deadlines(asyncio.get_running_loop())
        return self._deadlines

    def _read(self, raw: bytes, caller: Principal) -> generation_pb2.GenerateRequest:
        try:
            request = generation_pb2.GenerateRequest.FromString(raw)
        except DecodeError as exc:
            raise invalid([Violation("", "is not a GenerateRequest message")]) from exc
        validate_generate(request, size=len(raw))
        if not request.request_id:
            request.request_id = f"{self._random.getrandbits(128):032x}"
        elif self._bodies is not None:
            self._bodies.check(caller, request)
        return request

    def _allowed(
        self, request: generation_pb2.GenerateRequest, time_remaining: float | None
    ) -> float:
        """Seconds that the request may take."""
        allowed = self.limits.default_timeout
        if request.HasField("timeout"):
            allowed = min(request.timeout.ToNanoseconds() / 1e9, self.limits.max_timeout)
        if time_remaining is not None:
            allowed = min(allowed, time_remaining)
        return allowed


def onward(outlet: Outlet) -> Onward:
    """The shortest way to a request's target, see ActiveRequest.onward."""
    return outlet.onward if isinstance(outlet, ActiveRequest) else outlet.chunk
