"""One request's life in the router: choose, relay, retry, resume, account.

Everything happens in callbacks on the event loop, without a task per request.
Wire and sessions are elsewhere; the choice is core's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, reason_name
from services.chassis.model_handler import CallContext, Outlet
from services.router.core import values
from services.router.core.decide import wait_limit
from services.router.observation import Observation
from services.router.pool import Pool
from services.router.receipt import ReceiptBuilder
from services.router.refusals import ELSEWHERE, lost, overloaded, refused
from services.router.resume import Delivered, can_resume, continued
from services.router.route_requests import estimated_prompt_tokens, route_request
from services.router.uplink import Uplink

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
# A backend's deadline is a little earlier than the caller's, so that its own word arrives.
DEADLINE_MARGIN_S = 0.05


class _Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """Seconds that a request waits at most, and the clock that measures them."""

    max_queue_time: float
    clock: Callable[[], float]


class Exchange:
    """One request between its caller's outlet and the backends that work on it."""

    def __init__(
        self,
        pool: Pool,
        limits: RoutingLimits,
        request: pb.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        observation: Observation,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._request = request
        self._context = context
        self._outlet = outlet
        self._observation = observation
        self._receipt = ReceiptBuilder(limits.clock)
        self._phase = _Phase.WAITING
        self._resume = values.Resume.FRESH
        self._next_request = request
        self._tried: set[str] = set()
        self._uplink: Uplink | None = None
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled = False
        self._resumable = can_resume(request)
        self._kept: list[bytes] = []
        self._delivered = 0
        self._seen_output = False
        self._check_position = False

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._context.request_id

    def begin(self) -> None:
        """Decides and starts, or queues. Raises Fault when it is refused at once."""
        self._act(self._decide())

    def cancel(self) -> None:
        """The caller wants no more."""
        if self._phase is _Phase.OVER or self._cancelled:
            return
        self._cancelled = True
        if self._phase is _Phase.WAITING:
            self._leave_line()
            self._end_cancelled()
        elif self._uplink is not None:
            self._uplink.cancel(self._number)

    # Choosing

    def retry_now(self) -> bool:
        """The pool changed while this request waited."""
        decision = self._decide()
        if isinstance(decision.verdict, values.Wait):
            return False
        self._leave_line()
        try:
            self._act(decision)
        except Fault as fault:
            self._fail(fault)
        return True

    def _decide(self) -> values.Decision:
        return self._pool.decide(
            route_request(
                self._next_request,
                elapsed=self._receipt.elapsed(),
                resume=self._resume,
                tried=frozenset(self._tried),
            )
        )

    def _act(self, decision: values.Decision) -> None:
        verdict = decision.verdict
        if isinstance(verdict, values.Dispatch):
            self._dispatch(verdict)
        elif isinstance(verdict, values.Wait):
            self._queue(verdict.why)
        elif self._seen_output:
            raise self._lost(verdict.why)
        else:
            fault = refused(verdict, self._request.model)
            raise fault.after(Work.MAYBE_BILLED) if self._tried else fault

    def _queue(self, why: str) -> None:
        if not self._pool.wait(self):
            raise overloaded(f"the waiting line is full ({self._pool.max_waiting})")
        request = route_request(self._next_request, elapsed=self._receipt.elapsed())
        limit = wait_limit(request, self._limits.max_queue_time)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limit, self._waited_too_long, why)

    def _waited_too_long(self, why: str) -> None:
        self._pool.leave_line(self)
        self._fail(self._lost(why) if self._seen_output else overloaded(why))

    def _leave_line(self) -> None:
        self._pool.leave_line(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Relaying

    def _dispatch(self, verdict: values.Dispatch) -> None:
        uplink = self._pool.uplink(verdict.backend_id)
        assert uplink is not None, "decided on the pool as it is now"
        outgoing = pb.GenerateRequest()
        outgoing.CopyFrom(self._next_request)
        left = self._context.deadline - asyncio.get_running_loop().time()
        outgoing.timeout.FromMilliseconds(max(int((left - DEADLINE_MARGIN_S) * 1000), 1))
        self._receipt.dispatched(verdict, uplink.backend.id)
        self._uplink = uplink
        self._phase = _Phase.RUNNING
        self._number = uplink.start(
            outgoing.SerializeToString(),
            estimated_prompt_tokens(outgoing),
            self._context.caller,
            self._observation.traceparent,
            self,
        )

    def on_chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        """A chunk of the answer: passed on as it is, but for the last."""
        if not self._seen_output:
            self._seen_output = True
            self._receipt.first_chunk()
        if self._check_position:
            self._check_position = False
            if not self._goes_on(raw):
                return
        if last:
            self._finish(raw)
            return
        self._delivered += tokens
        if self._resumable:
            self._kept.append(raw)
        self._outlet.chunk(raw, last=False, tokens=tokens)

    def _goes_on(self, raw: bytes) -> bool:
        """Whether a resumed answer starts where the delivered one ends."""
        first = pb.GenerateChunk.FromString(raw)
        expected = len(self._next_request.continuation.token_ids)
        if self._resume is not values.Resume.AFTER_TOKENS or first.first_token == expected:
            return True
        self._abort_attempt()
        self._fail(self._lost("the answer was gone on with at the wrong place"))
        return False

    def _finish(self, raw: bytes) -> None:
        chunk = pb.GenerateChunk.FromString(raw)
        if not chunk.finish_reason:
            self._receipt.attempt_failed("BACKEND_LOST")
            self._fail(self._lost("the backend ended the answer without a finish reason"))
            return
        self._end_with(chunk)

    def _end_with(self, chunk: pb.GenerateChunk) -> None:
        """The last chunk, however it came about, with its receipt."""
        self._phase = _Phase.OVER
        served = self._uplink.backend.models.get(self._request.model) if self._uplink else None
        self._receipt.complete(chunk, served.served_model if served else "")
        self._observation.finished(chunk)
        self._kept.clear()
        self._outlet.chunk(chunk.SerializeToString(), last=True, tokens=len(chunk.token_ids))

    # Failing, and going on elsewhere

    def on_failure(self, fault: Fault) -> None:
        """The backend failed the request, or was lost."""
        if self._phase is _Phase.OVER:
            return
        self._receipt.attempt_failed(reason_name(fault.reason))
        if self._uplink is not None:
            self._tried.add(self._uplink.backend.id)
        if self._cancelled:
            self._end_cancelled()
            return
        if fault.reason not in ELSEWHERE:
            self._fail(fault)
            return
        if self._receipt.attempts >= MAX_ATTEMPTS:
            self._fail(self._lost(f"gave up after {MAX_ATTEMPTS} attempts: {fault.message}"))
            return
        if self._seen_output and not self._prepare_resume():
            return
        self._phase = _Phase.WAITING
        self._uplink = None
        decision = self._decide()
        _log.info(
            "going on elsewhere",
            extra={
                "request_id": self.request_id,
                "cause": fault.message,
                "delivered": self._delivered,
                "verdict": type(decision.verdict).__name__,
            },
        )
        try:
            self._act(decision)
        except Fault as refusal:
            lost_one = fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
            # A backend's own word, such as a provider's error, says more than "nobody else".
            self._fail(refusal if self._seen_output or lost_one else fault)

    def _prepare_resume(self) -> bool:
        """Builds the request for the rest; false when the request was ended instead."""
        if not self._resumable:
            self._fail(self._lost("this kind of answer cannot be gone on with elsewhere"))
            return False
        delivered = Delivered(self._kept)
        if not delivered.complete:
            self._fail(self._lost("an answer with reasoning cannot be gone on with elsewhere"))
            return False
        rest = continued(self._request, delivered)
        if rest is None:
            # Every token was delivered; only the word that it was the last one is missing.
            chunk = pb.GenerateChunk(
                first_token=len(delivered.token_ids),
                finish_reason=pb.FINISH_REASON_LENGTH,
                usage=pb.Usage(completion_tokens=self._delivered, source=pb.Usage.SOURCE_PARTIAL),
            )
            self._end_with(chunk)
            return False
        self._next_request = rest
        self._resume = delivered.kind
        self._check_position = True
        self._receipt.resuming_at(self._delivered)
        return True

    def _lost(self, message: str) -> Fault:
        return lost(message, self._delivered, output_seen=self._seen_output)

    def _abort_attempt(self) -> None:
        if self._uplink is not None:
            self._uplink.cancel(self._number)

    def _end_cancelled(self) -> None:
        self._end_with(
            pb.GenerateChunk(
                first_token=self._delivered,
                finish_reason=pb.FINISH_REASON_CANCELLED,
                usage=pb.Usage(completion_tokens=self._delivered, source=pb.Usage.SOURCE_PARTIAL),
            )
        )

    def _fail(self, fault: Fault) -> None:
        self._phase = _Phase.OVER
        self._kept.clear()
        self._observation.failed(fault)
        self._outlet.fail(fault)
