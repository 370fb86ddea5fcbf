"""One request for text on its way through providers: its attempts, its end, its account.

Between the loop of attempts, which feeds it, and its caller. Every path ends with exactly one last
chunk or one fault. It opens no connection itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from opentelemetry.trace import Span

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_of, reason_name
from services.chassis.model_handler import CallContext, ids_of
from services.cloud_proxy import estimates
from services.cloud_proxy.account import Account, cost_of
from services.cloud_proxy.answer import Delta, Ending, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.attempts import Attempt, Attempts, log_failure
from services.cloud_proxy.candidates import Candidate
from services.cloud_proxy.chunks import ChunkWriter
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder
from services.cloud_proxy.failures import to_fault
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.refusals import affordable
from services.cloud_proxy.spending import Money, cost_at_most, may_be_billed
from services.cloud_proxy.streams import StreamEvent
from services.cloud_proxy.trail import Trail

_log = logging.getLogger(__name__)

_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    Finish.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
}


class Call:
    """One request; `leaving` is what leaves of it, in which so many entities were masked."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        leaving: pb.GenerateRequest,
        candidates: Iterable[Candidate],
        route: Route,
        writer: ChunkWriter,
        context: CallContext,
        observer: Observer,
        money: Money,
        masked_entities: int,
    ) -> None:
        self._request = request
        self._leaving = leaving
        self._money = money
        self._candidates = candidates
        self._route = route
        self._writer = writer
        self._context = context
        self._observer = observer
        self._masked_entities = masked_entities
        self._account = Account(request)
        self._trail = Trail()
        self._decoder: AnswerDecoder | None = None
        self._span: Span | None = None
        self._began = 0.0
        self._answering = False
        self._settled = False

    async def run(self, attempts: Attempts) -> None:
        """Asks providers and ends the answer, unless it is cancelled: then `cut_off` does."""
        self._began = asyncio.get_running_loop().time()
        try:
            await attempts.run(self._candidates, self, self._context.deadline)
        except ProviderFailure as failure:
            delivered = self._writer.delivered
            prompt = estimates.prompt_tokens(self._request)
            earlier = self._trail.failures()
            self._fail(to_fault(failure, self._route, delivered, prompt, earlier))
        except Exception as bug:  # noqa: BLE001 - the edge: a bug here must end its own request only
            self._fail(fault_of(bug))

    def cancelled(self, stop: Callable[[], None]) -> None:
        """The caller is gone. `stop` closes the connection: at once, or, where the provider bills
        the whole answer anyway, once it has said how much that is or has had its time."""
        drain = self._route.profile.drain_seconds
        if not (self._answering and drain) or self._writer.ended:
            stop()
            return
        self._close_cancelled()
        asyncio.get_running_loop().call_later(drain, stop)

    def cut_off(self) -> None:
        """Ends what has not ended, after the task that ran it has."""
        if self._span is not None:
            self._observer.cut_off(self._span)
            self._span = None
        if not self._writer.ended:
            self._close_cancelled()
        if not self._settled:
            self._settle(self._so_far())

    # What the loop of attempts calls

    async def admit(self, candidate: Candidate) -> None:
        """See Exchange: budgets must cover the most that it may cost there."""
        self._route = route = candidate.route
        provider = route.profile.name
        most = None
        if self._money.is_limited(provider):
            # Only where it matters: it takes a walk through the request.
            most = cost_at_most(self._leaving, route, affordable(self._leaving, route))
        await self._money.reserve(provider, most)

    def receiver(self, candidate: Candidate) -> _Answer:
        """See Exchange."""
        self._decoder = candidate.dialect.decoder(self._request, candidate.route)
        return _Answer(self, self._decoder)

    def attempt_began(self, attempt: Attempt) -> None:
        """See Exchange."""
        self._trail.add(attempt)
        self._span = self._observer.attempt_began("chat", attempt, self._context.traceparent)
        if self._span is not None:
            self._observer.asked(self._span, self._request)

    def attempt_ended(self, attempt: Attempt) -> None:
        """See Exchange."""
        self._observer.attempt_ended("chat", attempt, self._span)
        self._span = None
        if attempt.failure is not None:
            if not self._answering and may_be_billed(attempt.failure, 0):
                self._money.owe(cost_of(self._so_far(), self._route))
            log_failure(attempt, self._facts())

    # What the receiver calls

    def deliver(self, delta: Delta) -> None:
        """New output."""
        if not self._answering:
            self._answering = True
            now = asyncio.get_running_loop().time()
            self._observer.first_output(self._route, now - self._began)
        self._account.received(delta, shown=self._writer.shows(delta))
        self._writer.write(delta)

    def conclude(self, ending: Ending) -> None:
        """The answer is complete."""
        usage = ending.usage or self._account.estimate()
        if self._span is not None:
            self._observer.answered(self._span, ending.finishes.values(), usage)
        cost = self._settle(usage)
        if self._writer.ended:
            return
        source = pb.Usage.SOURCE_PROVIDER if ending.usage else pb.Usage.SOURCE_ESTIMATED
        finishes = {number: _FINISH[finish] for number, finish in ending.finishes.items()}
        self._close(finishes, usage, source, cost, ending)

    # Ends

    def _close_cancelled(self) -> None:
        usage = self._so_far()
        finishes = dict.fromkeys(range(self._writer.choices), pb.FINISH_REASON_CANCELLED)
        cost = cost_of(usage, self._route)
        self._close(finishes, usage, pb.Usage.SOURCE_PARTIAL, cost, None)

    def _so_far(self) -> ProviderUsage:
        """Usage of an answer that was cut off."""
        if not len(self._trail):
            return ProviderUsage(prompt=0, cached=0, completion=0, reasoning=0)
        stated = self._decoder.usage if self._decoder is not None else None
        return estimates.cut_off_usage(stated, self._account.estimate())

    def _settle(self, usage: ProviderUsage) -> int:
        """Accounts for the request, once, and gives what it costs in micro-USD."""
        cost = cost_of(usage, self._route)
        if not self._settled:
            self._settled = True
            self._money.settle(cost)
            self._observer.usage(self._route, usage, cost)
        return cost

    def _close(
        self,
        finishes: dict[int, pb.FinishReason],
        usage: ProviderUsage,
        source: pb.Usage.Source,
        cost: int,
        ending: Ending | None,
    ) -> None:
        def complete(choice: int, chunk: pb.GenerateChunk, last: bool) -> None:
            if ending is not None and choice in ending.replay:
                state = ending.replay[choice]
                chunk.reasoning_state.add(provider=self._route.profile.name, data=state)
            if ending is not None and choice in ending.matched_stop:
                chunk.matched_stop = ending.matched_stop[choice]
            if last:
                self._account.write(chunk, usage, source, self._route, cost)
                chunk.receipt.masked_entities = self._masked_entities
                self._trail.write(chunk.receipt, asyncio.get_running_loop().time())

        self._writer.close(finishes, complete)
        _log.info(
            "answered",
            extra={
                **self._facts(),
                "finish": [pb.FinishReason.Name(f) for f in finishes.values()],
                "prompt_tokens": usage.prompt,
                "completion_tokens": usage.completion,
                "usage_source": pb.Usage.Source.Name(source),
                "cost_microusd": cost,
                "masked_entities": self._masked_entities,
            },
        )

    def _fail(self, fault: Fault) -> None:
        if self._answering:
            # What was delivered was also billed.
            self._settle(self._so_far())
        self._settled = True
        self._money.release()
        if self._writer.ended:
            return
        if len(self._trail) > 1:
            fault.metadata = {**fault.metadata, "attempts": str(len(self._trail))}
        _log.warning(
            "request failed",
            extra={**self._facts(), "reason": reason_name(fault.reason), "code": fault.code.name},
        )
        self._writer.fail(fault)

    def _facts(self) -> dict[str, object]:
        return {
            **ids_of(self._context),
            "tenant": self._context.caller.tenant,
            "model": self._route.name,
            "provider": self._route.profile.name,
        }


class _Answer:
    """The receiver of one attempt: decodes, and hands on to its call."""

    __slots__ = ("_call", "_decoder", "_ending", "delivered")

    def __init__(self, call: Call, decoder: AnswerDecoder) -> None:
        self._call = call
        self._decoder = decoder
        self._ending: Ending | None = None
        self.delivered = 0

    def events(self, events: list[StreamEvent]) -> bool:
        """See Receiver."""
        decoder, deliver = self._decoder, self._call.deliver
        for event in events:
            for delta in decoder.event(event):
                self.delivered += 1
                deliver(delta)
            if decoder.done:
                return True
        return False

    def body(self, body: bytes) -> None:
        """See Receiver."""
        deltas = self._decoder.whole(body)
        # All of it is there: what is not complete is not passed on, and can be asked for again.
        self._ending = self._decoder.ending()
        for delta in deltas:
            self.delivered += 1
            self._call.deliver(delta)

    def end(self) -> None:
        """See Receiver."""
        self._call.conclude(self._ending or self._decoder.ending())
