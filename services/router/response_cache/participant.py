"""One caller's request among others with the same content: what it gets of their answer.

The answer is the same for all of them; request id, times and receipt are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.router.core.policy import Policy
from services.router.receipt import write_seconds
from services.router.response_cache.entry import Entry, own_part

if TYPE_CHECKING:
    from services.router.response_cache.flights import Flight

Start = Callable[[pb.GenerateRequest, CallContext, Outlet], Cancel]
"""Sends a request to a backend, as ModelHandler.open does."""

_URGENCY = {pb.PRIORITY_SYSTEM: 0, pb.PRIORITY_BATCH: 2}
_INTERACTIVE = 1


class Haste(NamedTuple):
    """How soon a request wants to start: its class, the urgent ones lower, and its limit for the
    time to the first token, in seconds."""

    urgency: int
    ttft_slo: float

    def exceeds(self, other: Haste) -> bool:
        """Whether what is good enough for the other may be too late for this one."""
        return self.urgency < other.urgency or self.ttft_slo < other.ttft_slo


class Participant:
    """A request between its caller's outlet and the flight that it is in.

    `policy` was in force when it came. `resolved_model` is what an alias stood for, or empty.
    `restarted` is true once a flight failed under it before it had brought anything, `over` once
    its outlet was ended.
    """

    __slots__ = (
        *("_arrived", "_clock", "_outlet", "_ttft", "context", "flight", "over", "policy"),
        *("request", "resolved_model", "restarted", "start"),
    )

    def __init__(
        self,
        request: pb.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        start: Start,
        clock: Callable[[], float],
        policy: Policy,
        *,
        resolved_model: str = "",
    ) -> None:
        self.request = request
        self.policy = policy
        self.context = context
        self.start = start
        self.resolved_model = resolved_model
        self.flight: Flight | None = None
        self.restarted = False
        self.over = False
        self._outlet = outlet
        self._clock = clock
        self._arrived = clock()
        self._ttft: float | None = None

    @property
    def haste(self) -> Haste:
        """How soon it wants to start."""
        if not self.request.HasField("routing"):
            return Haste(_INTERACTIVE, float("inf"))
        routing = self.request.routing
        limited = routing.HasField("ttft_slo")
        return Haste(
            _URGENCY.get(routing.priority, _INTERACTIVE),
            routing.ttft_slo.ToNanoseconds() / 1e9 if limited else float("inf"),
        )

    def cancel(self) -> None:
        """The caller wants no more. Idempotent."""
        if self.flight is not None:
            self.flight.leave(self)

    def chunk(self, raw: bytes, tokens: int, *, named_otherwise: bool) -> None:
        """Part of the answer; `named_otherwise` when it may carry another's request id."""
        if self._ttft is None:
            self._ttft = self._clock() - self._arrived
        if named_otherwise:
            raw += own_part(request_id=self.context.request_id)
        self._outlet.chunk(raw, last=False, tokens=tokens)

    def relay_last(self, raw: bytes, tokens: int) -> None:
        """The answer's end, as it came for this very request."""
        self._over()
        self._outlet.chunk(raw, last=True, tokens=tokens)

    def inherit_last(self, chunk: pb.GenerateChunk, tokens: int) -> None:
        """The answer's end, for whoever goes on with a request that another began.

        Its receipt is that of the request, cost included, and only the times are its own.
        """
        own = pb.GenerateChunk()
        own.CopyFrom(chunk)
        own.request_id = self._name_once()
        receipt = own.receipt
        write_seconds(receipt.ttft, self._first_token_after())
        receipt.resolved_model = self.resolved_model
        self.relay_last(own.SerializeToString(), tokens)

    def share_last(
        self,
        raw: bytes,
        tokens: int,
        source: pb.CacheSource,
        receipt: pb.RouteReceipt | None = None,
    ) -> None:
        """The answer's end, without a receipt, generated for another request."""
        own = own_part(
            request_id=self._name_once(),
            receipt=receipt,
            source=source,
            ttft=self._first_token_after(),
            resolved_model=self.resolved_model,
        )
        self.relay_last(raw + own, tokens)

    def take(self, entry: Entry, source: pb.CacheSource) -> None:
        """The whole answer, which was kept."""
        self.share_last(entry.chunk, entry.tokens, source)

    def end_cancelled(self, tokens: int, source: pb.CacheSource) -> None:
        """Its caller left after so many output tokens, while others stay."""
        position = len(self.request.continuation.token_ids) + tokens
        ended = pb.GenerateChunk(
            first_token=position,
            finish_reason=pb.FINISH_REASON_CANCELLED,
            usage=pb.Usage(completion_tokens=position, source=pb.Usage.SOURCE_PARTIAL),
        )
        ended.receipt.SetInParent()
        self.relay_last(
            ended.SerializeToString()
            + own_part(
                request_id=self._name_once(),
                source=source,
                ttft=self._ttft,
                resolved_model=self.resolved_model,
            ),
            0,
        )

    def fail(self, fault: Fault) -> None:
        """The request failed."""
        self._over()
        self._outlet.fail(fault)

    def _name_once(self) -> str:
        """The request's id for the first chunk, and nothing for a later one."""
        return self.context.request_id if self._ttft is None else ""

    def _first_token_after(self) -> float:
        return self._clock() - self._arrived if self._ttft is None else self._ttft

    def _over(self) -> None:
        self.over = True
        # What is over is no part of a cycle, so it is freed at once.
        self.flight = None
