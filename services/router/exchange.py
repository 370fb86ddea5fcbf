"""One request's life in the router: choose, relay, retry, resume, account.

Everything happens in callbacks on the event loop, without a task per request.
Wire and sessions are elsewhere; the choice is core's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto

from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, reason_name
from services.chassis.model_handler import CallContext, Outlet
from services.chassis.model_streams import onward
from services.router import refusals
from services.router.core import values
from services.router.core.decide import wait_limit
from services.router.observation import Observation
from services.router.pool import Pool
from services.router.receipt import ReceiptBuilder, write_seconds
from services.router.resume import Delivered, can_resume, continued
from services.router.route_requests import route_request
from services.router.uplink import MAX_START_BYTES, Uplink

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
# A backend's deadline is a little earlier than the caller's, so that its own word arrives.
DEADLINE_MARGIN_S = 0.05


_NOBODY: frozenset[str] = frozenset()


class _Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """Seconds that a request waits at most, and the clocks: deadlines are on that of the loop."""

    max_queue_time: float
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Exchange:
    """One request between its caller's outlet and the backends that work on it.

    `running` holds it from `begin` to its end.
    """

    __slots__ = (
        *("_asked", "_cancelled", "_check_position", "_context", "_delivered", "_kept", "_limits"),
        *(
            "_next_request",
            "_number",
            "_observation",
            "_onward",
            "_outlet",
            "_phase",
            "_pool",
            "_receipt",
        ),
        *("_relaying", "_request", "_resumable", "_resume", "_running", "_seen_output"),
        *("_timer", "_tried", "_uplink", "_work"),
    )

    def __init__(
        self,
        pool: Pool,
        limits: RoutingLimits,
        request: pb.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        observation: Observation,
        running: set[Exchange],
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._request = request
        self._context = context
        self._outlet = outlet
        self._onward = onward(outlet)
        self._observation = observation
        self._running = running
        self._receipt = ReceiptBuilder(limits.clock)
        self._phase = _Phase.WAITING
        self._resume = values.Resume.FRESH
        self._next_request = request
        self._asked: values.Request
        self._tried = _NOBODY
        self._work = Work.NOT_DISPATCHED
        self._uplink: Uplink | None = None
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled = False
        self._resumable = can_resume(request)
        self._kept: list[bytes] = []
        self._delivered = 0
        self._seen_output = False
        self._check_position = False
        # Whether the next chunk is one like any other: seen output, right position, not over.
        self._relaying = False

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._context.request_id

    def begin(self) -> None:
        """Decides and starts, or queues. Raises Fault when it is refused at once."""
        self._running.add(self)
        try:
            self._act(self._choose())
        except Fault as fault:
            self._over()
            self._observation.failed(fault)
            raise

    def cancel(self) -> None:
        """The caller wants no more."""
        if self._phase is _Phase.OVER or self._cancelled:
            return
        self._cancelled = True
        self._relaying = False
        if self._phase is _Phase.WAITING:
            self._leave_line()
            self._end_early(pb.FINISH_REASON_CANCELLED)
        elif self._uplink is not None:
            self._uplink.cancel(self._number)

    # Choosing

    @property
    def claim(self) -> Hashable:
        """What it waits for: where one waits in vain, the next with the same claim does too."""
        routing = self._request.routing
        limited = self._resume is values.Resume.FRESH and routing.HasField("ttft_slo")
        return (
            self._request.model,
            routing.residency,
            routing.backend_id,
            self._resume,
            self._tried,
            # A limit of its own makes a request pickier than its neighbours.
            self if limited else None,
        )

    def retry_now(self) -> bool:
        """The pool changed while this request waited."""
        verdict = self._choose()
        if isinstance(verdict, values.Wait):
            return False
        self._leave_line()
        try:
            self._act(verdict)
        except Fault as fault:
            self._fail(fault)
        return True

    def _choose(self) -> values.Verdict:
        self._asked = route_request(
            self._next_request,
            elapsed=self._receipt.elapsed(),
            resume=self._resume,
            tried=self._tried,
        )
        return self._pool.choose(self._asked)

    def _act(self, verdict: values.Verdict) -> None:
        if isinstance(verdict, values.Dispatch):
            self._dispatch(verdict)
        elif isinstance(verdict, values.Wait):
            self._queue(verdict.why)
        elif self._seen_output:
            raise self._lost(verdict.why)
        else:
            raise refusals.refused(verdict, self._request.model)

    def _queue(self, why: str) -> None:
        if not self._pool.wait(self):
            raise refusals.overloaded(f"the waiting line is full ({self._pool.max_waiting})")
        limit = wait_limit(self._asked, self._limits.max_queue_time)
        loop = self._limits.loop
        left = self._context.deadline - loop.time() - DEADLINE_MARGIN_S
        if left < limit:
            self._timer = loop.call_later(left, self._out_of_time)
        else:
            self._timer = loop.call_later(limit, self._waited_too_long, why)

    def _waited_too_long(self, why: str) -> None:
        self._pool.leave_line(self)
        self._fail(self._lost(why) if self._seen_output else refusals.overloaded(why))

    def _out_of_time(self) -> None:
        """The caller's time ends in the line: whoever says so here knows that nothing ran."""
        self._pool.leave_line(self)
        self._fail(
            Fault(
                errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
                "the request's time ran out while it waited for a free slot",
            )
        )

    def _leave_line(self) -> None:
        self._pool.leave_line(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Relaying

    def _dispatch(self, verdict: values.Dispatch) -> None:
        uplink = self._pool.uplink(verdict.backend_id)
        assert uplink is not None, "decided on the pool as it is now"
        request = self._next_request
        left = self._context.deadline - self._limits.loop.time() - DEADLINE_MARGIN_S
        write_seconds(request.timeout, max(left, 0.001))
        raw = request.SerializeToString()
        if len(raw) > MAX_START_BYTES:
            raise refusals.too_large_to_forward(len(raw), MAX_START_BYTES)
        self._receipt.dispatched(verdict)
        self._uplink = uplink
        self._phase = _Phase.RUNNING
        self._number = uplink.start(
            raw,
            self._asked.prompt_tokens,
            self._context.caller,
            self._observation.traceparent,
            self,
        )

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """A chunk of the answer: passed on as it is, but for the last."""
        if last or not self._relaying:
            self._on_rare_chunk(raw, last, tokens)
            return
        self._delivered += tokens
        if self._resumable:
            self._kept.append(raw)
        self._onward(raw, last=False, tokens=tokens)

    def _on_rare_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """The first chunk of a backend, the last one, or one that comes too late."""
        if self._phase is _Phase.OVER:
            return
        if not self._seen_output:
            self._seen_output = True
            self._receipt.first_chunk()
        if self._check_position:
            self._check_position = False
            if not self._goes_on(raw):
                return
        if last:
            self._finish(raw, tokens)
            return
        self._delivered += tokens
        if self._resumable:
            self._kept.append(raw)
        self._outlet.chunk(raw, last=False, tokens=tokens)
        # Once cancelled, every chunk passes the outlet: it knows whether its caller still listens.
        self._relaying = not self._cancelled and self._phase is _Phase.RUNNING

    def _goes_on(self, raw: bytes) -> bool:
        """Whether a resumed answer starts where the delivered one ends."""
        first = self._read(raw)
        expected = len(self._next_request.continuation.token_ids)
        if first is None:
            return False
        if self._resume is not values.Resume.AFTER_TOKENS or first.first_token == expected:
            return True
        self._give_up("the answer was gone on with at the wrong place")
        return False

    def _read(self, raw: bytes) -> pb.GenerateChunk | None:
        """The chunk; None when it is none and the request was ended for it."""
        try:
            return pb.GenerateChunk.FromString(raw)
        except DecodeError:
            self._give_up("the backend sent a chunk that cannot be read")
            return None

    def _give_up(self, why: str) -> None:
        if self._uplink is not None:
            self._uplink.cancel(self._number)
        self._fail(self._lost(why))

    def _finish(self, raw: bytes, tokens: int) -> None:
        chunk = self._read(raw)
        if chunk is None:
            return
        if not chunk.finish_reason:
            self._receipt.attempt_failed("BACKEND_LOST")
            self._fail(self._lost("the backend ended the answer without a finish reason"))
            return
        self._end_with(chunk, tokens)

    def _end_with(self, chunk: pb.GenerateChunk, tokens: int = 0) -> None:
        """The last chunk, however it came about, with its receipt."""
        self._over()
        served = self._uplink.backend.models.get(self._request.model) if self._uplink else None
        self._receipt.complete(chunk, served.served_model if served else "")
        self._observation.finished(chunk, self._receipt)
        self._outlet.chunk(chunk.SerializeToString(), last=True, tokens=tokens)

    def _over(self) -> None:
        self._phase = _Phase.OVER
        self._relaying = False
        self._kept.clear()
        self._running.discard(self)

    # Failing, and going on elsewhere

    def on_failure(self, fault: Fault) -> None:
        """The backend failed the request, or was lost."""
        if self._phase is _Phase.OVER:
            return
        self._receipt.attempt_failed(reason_name(fault.reason))
        self._work = fault.after(self._work).work
        if self._uplink is not None:
            self._tried |= {self._uplink.backend.id}
        if self._cancelled:
            self._end_early(pb.FINISH_REASON_CANCELLED)
            return
        if fault.reason not in refusals.ELSEWHERE:
            self._fail(fault)
            return
        if self._receipt.attempts >= MAX_ATTEMPTS:
            why = f"gave up after {MAX_ATTEMPTS} attempts: {fault.message}"
            self._fail_for(fault, self._lost(why))
            return
        if self._seen_output and not self._prepare_resume():
            return
        self._phase = _Phase.WAITING
        self._relaying = False
        self._uplink = None
        verdict = self._choose()
        _log.info(
            "going on elsewhere",
            extra={
                "request_id": self.request_id,
                "cause": fault.message,
                "delivered": self._delivered,
                "verdict": type(verdict).__name__,
            },
        )
        try:
            self._act(verdict)
        except Fault as refusal:
            self._fail_for(fault, refusal)

    def _prepare_resume(self) -> bool:
        """Builds the request for the rest; false when the request was ended instead."""
        existing = len(self._request.continuation.token_ids)
        delivered = Delivered(self._kept, after=existing, tokens=self._delivered)
        if not self._resumable or not delivered.complete:
            self._fail(self._lost("this kind of answer cannot be gone on with elsewhere"))
            return False
        rest = continued(self._request, delivered)
        if rest is None:
            # Every token was delivered; only the word that it was the last one is missing.
            self._end_early(pb.FINISH_REASON_LENGTH)
            return False
        self._next_request = rest
        self._resume = delivered.kind
        self._check_position = True
        self._receipt.resuming_at(self._delivered)
        return True

    def _lost(self, message: str) -> Fault:
        work = Work.OUTPUT_SEEN if self._seen_output else self._work
        return refusals.lost(message, self._delivered, work=work)

    def _end_early(self, reason: pb.FinishReason) -> None:
        """Ends the answer after what was delivered, in the place of a backend."""
        position = len(self._request.continuation.token_ids) + self._delivered
        usage = pb.Usage(completion_tokens=position, source=pb.Usage.SOURCE_PARTIAL)
        self._end_with(pb.GenerateChunk(first_token=position, finish_reason=reason, usage=usage))

    def _fail_for(self, fault: Fault, otherwise: Fault) -> None:
        """Nobody else can take it: a backend's own word says more than that, where it may."""
        private = self._seen_output or fault.reason in refusals.TO_THE_ROUTER
        self._fail(otherwise if private else fault)

    def _fail(self, fault: Fault) -> None:
        fault = fault.after(self._work)
        self._over()
        self._observation.failed(fault)
        self._outlet.fail(fault)
