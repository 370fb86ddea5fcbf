"""One request's life in the router: choose, relay, retry, resume, hedge, account.

Everything happens in callbacks on the event loop, without a task per request.
Wire and sessions are elsewhere; the choice is core's.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum, auto

from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, internal, reason_name
from services.chassis.model_handler import CallContext, Outlet
from services.chassis.model_streams import onward
from services.router import refusals
from services.router.asking import Asking
from services.router.core import values
from services.router.hedge import NO_HEDGE, Hedge, NoHedge
from services.router.legs import Leg, Routing, send
from services.router.observation import Observation
from services.router.receipt import ReceiptBuilder
from services.router.receivers import Receiver
from services.router.resume import can_resume, last_chunk, rest_of
from services.router.spending import payer_of
from services.router.waiting_line import Turn


class _Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


class Exchange:
    """One request between its caller's outlet and its backends; `running` holds it to its end."""

    __slots__ = (
        *("_asking", "_cancelled", "_check_position", "_context", "_delivered", "_hedge"),
        *("_kept", "_leg", "_next_request", "_observation", "_onward", "_outlet"),
        *("_phase", "_receipt", "_relaying", "_request", "_resumable", "_resume", "_routing"),
        *("_running", "_seen_output", "_tried", "_work"),
    )

    def __init__(
        self,
        routing: Routing,
        request: pb.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        observation: Observation,
        running: set[Exchange],
        model: str = "",
    ) -> None:
        self._routing = routing
        self._request = request
        self._context = context
        self._outlet = outlet
        self._onward = onward(outlet)
        self._observation = observation
        self._running = running
        self._receipt = ReceiptBuilder(routing.clock)
        payer = payer_of(context.caller, request.model)
        self._asking = Asking(request, payer, routing.decisions, routing.spending, model)
        self._phase = _Phase.WAITING
        self._resume = values.Resume.FRESH
        self._next_request = request
        self._tried: frozenset[str] = frozenset()
        self._work = Work.NOT_DISPATCHED
        self._leg: Leg | None = None
        self._hedge: Hedge | NoHedge = NO_HEDGE
        self._resumable = can_resume(request)
        self._kept: list[bytes] = []
        self._delivered = 0
        self._cancelled = self._seen_output = self._check_position = False
        # Whether the next chunk is one like any other: seen output, right position, not over.
        self._relaying = False

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._context.request_id

    def begin(self) -> None:
        """Decides and starts, or queues. Raises Fault when it is refused at once."""
        self._running.add(self)
        self._routing.decisions.count_request()
        try:
            self._act(self._choose())
        except Fault as fault:
            self._over()
            self._observation.failed(fault, self._receipt)
            raise
        except Exception as exc:  # noqa: BLE001 - it is known here, and must not stay
            self.on_bug(internal(exc))

    def cancel(self) -> None:
        """The caller wants no more."""
        if self._phase is _Phase.OVER or self._cancelled:
            return
        self._cancelled = True
        self._relaying = False
        self._hedge.drop()
        if self._phase is _Phase.WAITING:
            self._routing.line.leave(self)
            self._end_early(pb.FINISH_REASON_CANCELLED)
        elif self._leg is not None:
            self._leg.cancel()

    # Choosing

    @property
    def claim(self) -> Hashable:
        """What it waits for: where one waits in vain, the next with the same claim does too."""
        claim = self._asking.claim(resuming=self._resume is not values.Resume.FRESH)
        return (self, None) if claim is None else (claim, self._resume, self._tried)

    def retry_now(self) -> Turn:
        """The pool changed while this request waited."""
        verdict = self._choose()
        if self._asking.must_wait(verdict):
            return Turn.WAITS
        try:
            # Not asked again whether it must wait: it does already.
            self._act(verdict, may_wait=False)
        except Fault as fault:
            self._fail(fault)
            return Turn.REFUSED
        return Turn.SERVED

    def shed(self, fault: Fault) -> None:
        """It was taken out of the line: it waited too long, or for the good of others."""
        out_of_time = fault.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        fault = self._lost("no backend came free") if self._seen_output else fault
        try:
            if out_of_time:
                raise fault
            self._go_or_raise(fault)
        except Fault as refused:
            self._fail(refused)

    def _values(self, *, impatient: bool = False) -> values.Request:
        leg = self._leg
        return self._asking.values(
            elapsed=self._receipt.elapsed(),
            resume=self._resume,
            delivered=self._delivered,
            tried=self._tried,
            begun_in=leg.dispatch.tier if leg is not None else None,
            ahead=self._routing.line.ahead_of(self._asking.model, self._asking.klass),
            impatient=impatient,
        )

    def _choose(self, *, impatient: bool = False) -> values.Verdict:
        asked = self._values(impatient=impatient)
        return self._routing.decisions.choose(asked, self._asking.terms)

    def _act(self, verdict: values.Verdict, *, may_wait: bool = True) -> None:
        if isinstance(verdict, values.Dispatch):
            self._dispatch(verdict)
        elif may_wait and self._asking.must_wait(verdict):
            self._queue(isinstance(verdict, values.Wait) and verdict.may_leave)
        elif self._seen_output or isinstance(verdict, values.Wait):
            raise self._lost(verdict.why)
        else:
            raise refusals.refused(verdict, self._asking.name)

    def _queue(self, may_leave: bool) -> None:
        asking, deadline, limit = self._asking, self._context.deadline, self._values().ttft_slo
        kept_out = self._routing.join_line(self, asking, deadline, limit, by_choice=may_leave)
        if kept_out is not None:
            self._go_or_raise(self._lost("no backend is free") if self._seen_output else kept_out)

    def _go_or_raise(self, fault: Fault) -> None:
        """It may not wait, or no longer: whoever would take it now gets it, the cloud too."""
        verdict = self._choose(impatient=True)
        if not isinstance(verdict, values.Dispatch):
            raise fault
        self._dispatch(verdict)

    # Relaying

    def _dispatch(self, verdict: values.Dispatch) -> None:
        self._leg = self.send_to(verdict, self)
        self._receipt.dispatched(verdict)
        self._phase = _Phase.RUNNING
        delay = self._routing.decisions.hedging.hedge_delay(verdict.predicted_ttft)
        if delay is not None and self._receipt.attempts == 1:
            self._hedge = Hedge(self, self._routing, self._receipt, self._asking.terms, delay)

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
        leg = self._leg
        if self._phase is _Phase.OVER or leg is None:
            return
        if not self._seen_output:
            self._seen_output = True
            self._receipt.first_chunk()
            self._hedge.drop()
        if not self._relaying and not self._cancelled:
            leg.answers(self._routing.clock())
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
        if self._leg is not None:
            self._leg.cancel()
        self._fail(self._lost(why))

    def _finish(self, raw: bytes, tokens: int) -> None:
        chunk = self._read(raw)
        if chunk is None:
            return
        if not chunk.finish_reason:
            self._receipt.attempt_failed("BACKEND_LOST")
            self._fail(self._lost("the backend ended the answer without a finish reason"))
            return
        leg = self._leg
        if leg is not None:
            leg.settle(self._routing.spending, chunk.receipt.cost_microusd)
            leg.uplink.backend.tracker.answered(self._delivered + tokens)
        self._end_with(chunk, tokens)

    def _end_with(self, chunk: pb.GenerateChunk, tokens: int = 0) -> None:
        """The last chunk, however it came about, with its receipt."""
        served = self._leg.served_model if self._leg is not None else ""
        self._over()
        self._receipt.complete(chunk, served, self._asking.resolved)
        self._observation.finished(chunk, self._receipt)
        self._outlet.chunk(chunk.SerializeToString(), last=True, tokens=tokens)

    def _over(self) -> None:
        self._phase = _Phase.OVER
        self._relaying = False
        self._kept.clear()
        self._running.discard(self)
        self._hedge.drop()
        self._hedge = NO_HEDGE
        if self._leg is not None:
            # What was not settled ended without a word about its cost.
            self._leg.settle(self._routing.spending, None)

    # Failing, and going on elsewhere

    def on_failure(self, fault: Fault) -> None:
        """The backend failed the request, or was lost."""
        leg = self._leg
        if self._phase is _Phase.OVER or leg is None:
            return
        self._receipt.attempt_failed(reason_name(fault.reason))
        self.leg_failed(leg, fault)
        nothing_ran = fault.work is Work.NOT_DISPATCHED
        leg.settle(self._routing.spending, 0 if nothing_ran else None)
        if self._cancelled:
            self._end_early(pb.FINISH_REASON_CANCELLED)
            return
        if self._hedge.is_running:
            self._leg = self._hedge.take_over(self)
            return
        self._hedge.drop()
        if fault.reason not in refusals.ELSEWHERE:
            self._fail(fault)
            return
        decisions = self._routing.decisions
        lost = fault.reason in refusals.LOSSES
        if why := decisions.objection_to_repeat(self._receipt.attempts, lost=lost):
            self._fail_for(fault, self._lost(f"{why}: {fault.message}"))
            return
        if self._seen_output and not self._prepare_resume():
            return
        self._phase = _Phase.WAITING
        self._relaying = False
        verdict = self._choose()
        self._observation.goes_on(self.request_id, fault, self._delivered, verdict)
        try:
            self._act(verdict)
        except Fault as refusal:
            self._fail_for(fault, refusal)

    def _prepare_resume(self) -> bool:
        """Builds the request for the rest; false when the request was ended instead."""
        rest = rest_of(self._request, self._kept, self._delivered) if self._resumable else None
        if rest is None:
            self._fail(self._lost("this kind of answer cannot be gone on with elsewhere"))
            return False
        if rest.request is None:
            # Every token was delivered; only the word that it was the last one is missing.
            self._end_early(pb.FINISH_REASON_LENGTH)
            return False
        self._next_request = rest.request
        self._resume = rest.kind
        self._check_position = True
        self._receipt.resuming_at(self._delivered)
        return True

    def _lost(self, message: str) -> Fault:
        work = Work.OUTPUT_SEEN if self._seen_output else self._work
        return refusals.lost(message, self._delivered, work=work)

    def _end_early(self, reason: pb.FinishReason) -> None:
        """Ends the answer after what was delivered, in the place of a backend."""
        self._end_with(last_chunk(self._request, self._delivered, reason))

    def _fail_for(self, fault: Fault, otherwise: Fault) -> None:
        """Nobody else can take it: a backend's own word says more than that, where it may."""
        private = self._seen_output or fault.reason in refusals.TO_THE_ROUTER
        self._fail(otherwise if private else fault)

    def _fail(self, fault: Fault) -> None:
        fault = fault.after(self._work)
        self._over()
        self._observation.failed(fault, self._receipt)
        self._outlet.fail(fault)

    def on_bug(self, fault: Fault) -> None:
        """See Receiver. It ends, whatever it was in the midst of."""
        self._routing.line.leave(self)
        if self._leg is not None:
            self._leg.drop()
        self._fail(fault)  # the outlet heeds it only if it had not ended

    # Hedging

    def is_late(self) -> bool:
        """See Hedged."""
        return self._phase is _Phase.RUNNING and not (self._seen_output or self._cancelled)

    def asked_elsewhere(self) -> values.Request:
        """See Hedged."""
        asked = self._values()
        here = {self._leg.uplink.backend.id} if self._leg is not None else set()
        return asked._replace(tried=asked.tried | here)

    def send_to(self, verdict: values.Dispatch, receiver: Receiver) -> Leg:
        """See Hedged."""
        request, context, trace = self._next_request, self._context, self._observation.traceparent
        return send(self._routing, self._asking, request, verdict, context, trace, receiver)

    def hedge_answered(self, leg: Leg, raw: bytes, last: bool, tokens: int) -> None:
        """See Hedged."""
        if self._leg is not None:
            self._leg.drop()
            self._leg.settle(self._routing.spending, None)
        self._receipt.attempt_failed("CANCELLED")
        self._leg = self._hedge.take_over(self)
        self.on_chunk(raw, last, tokens)

    def leg_failed(self, leg: Leg, fault: Fault) -> None:
        """See Hedged."""
        self._work = fault.after(self._work).work
        self._tried |= {leg.uplink.backend.id}
