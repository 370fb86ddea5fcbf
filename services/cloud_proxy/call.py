"""One request on its way through a provider: its chunks, its end, its account.

Between the upstream client, which feeds it, and the outlet, which it feeds. Every path ends with
exactly one last chunk or one fault. It opens no connection itself.
"""

from __future__ import annotations

import asyncio
import logging

from opentelemetry.trace import Span

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_of, reason_name
from services.chassis.model_handler import CallContext, Outlet
from services.cloud_proxy import estimates
from services.cloud_proxy.answer import Delta, Ending, Finish, ProviderFailure, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, Dialect, EncodedRequest
from services.cloud_proxy.failures import to_fault
from services.cloud_proxy.masking.request import Masked
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.spending import Money, may_be_billed
from services.cloud_proxy.upstream import Upstream

_log = logging.getLogger(__name__)

_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    Finish.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
}


class Call:
    """One request; `masked` is what leaves of it, where that differs, and `most` what it may cost
    in micro-USD, where that is known.

    Providers do not number tokens, so `first_token` counts the pieces of output
    delivered before, per choice, starting after the continuation's token ids.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        route: Route,
        dialect: Dialect,
        encoded: EncodedRequest,
        masked: Masked | None,
        context: CallContext,
        outlet: Outlet,
        observer: Observer,
        money: Money,
        most: int | None,
    ) -> None:
        self._request = request
        self._route = route
        self._dialect = dialect
        self._encoded = encoded
        # One for all attempts: only one delivers anything.
        self._restorer = masked.restorer() if masked is not None else None
        self._masked_entities = sum(masked.counts.values()) if masked is not None else 0
        self._context = context
        self._outlet = outlet
        self._observer = observer
        self._money = money
        self._most = most
        self._choices = max(request.sampling.n, 1)
        self._start = len(request.continuation.token_ids)
        self._pieces = [0] * self._choices
        self._received = 0
        self._bytes = 0
        self._reasoning_bytes = 0
        self._show_reasoning = (
            request.reasoning.include if request.reasoning.HasField("include") else True
        )
        self._decoder: AnswerDecoder | None = None
        self._span: Span | None = None
        self._began = 0.0
        self._asked = False
        self._greeted = False
        self._ended = False

    async def run(self, upstream: Upstream) -> None:
        """Asks the provider and ends the outlet, unless it is cancelled: then `cut_off` does."""
        self._began = asyncio.get_running_loop().time()
        try:
            await self._money.reserve(self._route.profile.name, self._most)
            await upstream.run(
                self._route, self._dialect, self._encoded, self, self._context.deadline
            )
        except ProviderFailure as failure:
            delivered = sum(self._pieces)
            prompt = estimates.prompt_tokens(self._request)
            self._fail(to_fault(failure, self._route, delivered, prompt))
        except Exception as bug:  # noqa: BLE001 - the edge: a bug here must end its own request only
            self._fail(fault_of(bug))

    def cut_off(self) -> None:
        """Ends the outlet after a cancel; nothing when it has ended already."""
        if self._span is not None:
            self._span.end()
            self._span = None
        if self._ended:
            return
        finishes = dict.fromkeys(range(self._choices), pb.FINISH_REASON_CANCELLED)
        self._close(finishes, self._so_far(), pb.Usage.SOURCE_PARTIAL, {})

    # What the upstream client calls

    def decoder(self) -> AnswerDecoder:
        """See Exchange."""
        self._decoder = self._dialect.decoder(self._request, self._route)
        return self._decoder

    def attempt_began(self) -> None:
        """See Exchange."""
        self._asked = True
        self._span = self._observer.start_span(self._route, self._context.traceparent)

    def attempt_ended(self, seconds: float, failure: ProviderFailure | None) -> None:
        """See Exchange."""
        if self._span is not None:
            self._observer.attempt(self._route, seconds, failure, self._span)
            self._span = None
        if failure is not None:
            if may_be_billed(failure, self._bytes):
                self._money.owe(self._cost(self._so_far()))
            _log.warning(
                "attempt failed",
                extra={
                    **self._facts(),
                    "failure": str(failure.kind),
                    "cause": failure.message,
                    "http_status": failure.http_status,
                    "ms": round(seconds * 1000, 1),
                },
            )

    def deliver(self, delta: Delta) -> None:
        """See Exchange."""
        # Counted as it came, since that is what is billed.
        tools = sum(len(t.name) + len(t.arguments.encode()) for t in delta.tools)
        thought = len(delta.reasoning.encode())
        self._reasoning_bytes += thought
        self._bytes += len(delta.text.encode()) + thought + tools
        self._received += self._shows(delta)
        self._tell(self._restorer.restored(delta) if self._restorer is not None else delta)

    def _shows(self, delta: Delta) -> bool:
        """Whether the caller sees anything of it."""
        return bool(delta.text or delta.tools or (delta.reasoning and self._show_reasoning))

    def _tell(self, delta: Delta) -> None:
        """Sends output to the caller, if there is any."""
        if not self._shows(delta):
            return
        chunk = pb.GenerateChunk(
            index=delta.choice,
            first_token=self._start + self._pieces[delta.choice],
            text=delta.text,
            reasoning=delta.reasoning if self._show_reasoning else "",
        )
        for tool in delta.tools:
            chunk.tool_calls.add(
                index=tool.index, id=tool.id, name=tool.name, arguments=tool.arguments
            )
        if not self._greeted:
            now = asyncio.get_running_loop().time()
            self._observer.first_output(self._route, now - self._began)
        self._pieces[delta.choice] += 1
        self._send(chunk, last=False, tokens=1)

    def conclude(self, ending: Ending) -> None:
        """See Exchange."""
        finishes = {number: _FINISH[finish] for number, finish in ending.finishes.items()}
        source = pb.Usage.SOURCE_PROVIDER if ending.usage else pb.Usage.SOURCE_ESTIMATED
        self._close(finishes, ending.usage or self._estimate(), source, ending.replay)

    # Ends

    def _close(
        self,
        finishes: dict[int, pb.FinishReason],
        usage: ProviderUsage,
        source: pb.Usage.Source,
        replay: dict[int, bytes],
    ) -> None:
        if self._restorer is not None:
            for number in range(self._choices):
                self._tell(self._restorer.rest(number))
        cost = self._cost(usage)
        self._money.settle(cost)
        self._observer.usage(self._route, usage, cost)
        remaining = len(finishes)
        for number, finish in sorted(finishes.items()):
            remaining -= 1
            chunk = pb.GenerateChunk(
                index=number,
                first_token=self._start + self._pieces[number],
                finish_reason=finish,
            )
            if number in replay:
                chunk.reasoning_state.add(provider=self._route.profile.name, data=replay[number])
            if not remaining:
                self._account(chunk, usage, source, cost)
            self._send(chunk, last=not remaining, tokens=0)
        self._ended = True
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

    def _account(
        self, chunk: pb.GenerateChunk, usage: ProviderUsage, source: pb.Usage.Source, cost: int
    ) -> None:
        """Usage and the proxy's part of the receipt: tier, model and cost."""
        prompt, completion = usage.prompt, usage.completion
        continued = self._start or estimates.tokens_of(
            len(self._request.continuation.text.encode())
        )
        if continued:
            # The provider counts the earlier output as prompt; the contract counts it as output.
            # Where the border lies is our estimate, whoever counted the sum.
            moved = min(continued, prompt)
            prompt, completion = prompt - moved, completion + moved
            if source == pb.Usage.SOURCE_PROVIDER:
                source = pb.Usage.SOURCE_ESTIMATED
        chunk.usage.prompt_tokens = prompt
        chunk.usage.cached_prompt_tokens = min(usage.cached, prompt)
        chunk.usage.completion_tokens = completion
        chunk.usage.reasoning_tokens = usage.reasoning
        chunk.usage.source = source
        chunk.receipt.tier = pb.TIER_CLOUD
        chunk.receipt.served_model = self._route.model.name
        chunk.receipt.cost_microusd = cost
        chunk.receipt.masked_entities = self._masked_entities

    def _fail(self, fault: Fault) -> None:
        if self._ended:
            return
        self._ended = True
        self._money.release()
        _log.warning(
            "request failed",
            extra={**self._facts(), "reason": reason_name(fault.reason), "code": fault.code.name},
        )
        self._outlet.fail(fault)

    def _send(self, chunk: pb.GenerateChunk, *, last: bool, tokens: int) -> None:
        if not self._greeted:
            self._greeted = True
            chunk.request_id = self._context.request_id
        self._outlet.chunk(chunk.SerializeToString(), last=last, tokens=tokens)

    def _cost(self, usage: ProviderUsage) -> int:
        prices = self._route.model.prices
        return estimates.cost_microusd(usage, prices) if prices else 0

    def _so_far(self) -> ProviderUsage:
        """Usage of an answer that was cut off."""
        if not self._asked:
            return ProviderUsage(prompt=0, cached=0, completion=0, reasoning=0)
        stated = self._decoder.usage if self._decoder is not None else None
        return estimates.cut_off_usage(stated, self._estimate())

    def _estimate(self) -> ProviderUsage:
        """Usage where nobody stated it: each piece of output held at least one token."""
        return ProviderUsage(
            prompt=estimates.prompt_tokens(self._request),
            cached=0,
            completion=max(estimates.tokens_of(self._bytes), self._received),
            reasoning=estimates.tokens_of(self._reasoning_bytes),
        )

    def _facts(self) -> dict[str, object]:
        return {
            "request_id": self._context.request_id,
            "tenant": self._context.caller.tenant,
            "model": self._route.name,
            "provider": self._route.profile.name,
        }
