"""Builds the RouteReceipt of one request: where it ran, how often, how long.

Times are taken from one clock, in seconds, from the request's arrival. They are plain
numbers while the request runs; the message is written once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.router.core.values import Dispatch, Overflow, Tier

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

TIERS = {Tier.LOCAL: pb.TIER_LOCAL, Tier.CLOUD: pb.TIER_CLOUD}
OVERFLOWS = {
    Overflow.SATURATED: pb.OVERFLOW_REASON_SATURATED,
    Overflow.ABSENT: pb.OVERFLOW_REASON_ABSENT,
    Overflow.UNHEALTHY: pb.OVERFLOW_REASON_UNHEALTHY,
    Overflow.FAILED: pb.OVERFLOW_REASON_FAILED,
}


class ToldAttempt(NamedTuple):
    """One dispatch, so many seconds `after` the request's arrival; `error` is empty for none."""

    backend_id: str
    tier: Tier
    after: float
    seconds: float
    error: str
    hedge: bool


class _Attempt:
    """One dispatch; `ended` is None while it runs."""

    __slots__ = ("backend_id", "began", "ended", "error", "hedge", "tier")

    def __init__(self, backend_id: str, tier: Tier, began: float) -> None:
        self.backend_id = backend_id
        self.tier = tier
        self.began = began
        self.ended: float | None = None
        self.error = ""
        self.hedge = False


class ReceiptBuilder:
    """Collects what happened to a request, and puts it on the last chunk.

    `tier` and `backend_id` are those of the last attempt, and so is `overflow`: a
    later attempt may be back in the preferred tier. `ttft` is None before the first chunk.
    """

    __slots__ = (
        *("_arrived", "_attempts", "_clock", "_has_hedged", "_hedge", "_predicted_ttft"),
        "_resumed_at",
        *("overflow", "ttft"),
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrived = clock()
        self._attempts: list[_Attempt] = []
        self._predicted_ttft = 0.0
        self._resumed_at: list[int] = []
        self._hedge: tuple[_Attempt, Overflow | None] | None = None
        self._has_hedged = False
        self.ttft: float | None = None
        self.overflow: Overflow | None = None

    @property
    def attempts(self) -> int:
        """Dispatches so far."""
        return len(self._attempts)

    @property
    def resumes(self) -> int:
        """How often the answer was gone on with elsewhere."""
        return len(self._resumed_at)

    @property
    def tier(self) -> Tier | None:
        """Where it ran last; None when it was never sent."""
        return self._attempts[-1].tier if self._attempts else None

    @property
    def backend_id(self) -> str:
        """Who had it last; empty when it was never sent."""
        return self._attempts[-1].backend_id if self._attempts else ""

    def elapsed(self) -> float:
        """Seconds since arrival."""
        return self._clock() - self._arrived

    def told(self) -> list[ToldAttempt]:
        """Every dispatch so far; what still runs has lasted until now."""
        now = self._clock()
        return [
            ToldAttempt(
                a.backend_id,
                a.tier,
                a.began - self._arrived,
                (now if a.ended is None else a.ended) - a.began,
                a.error,
                a.hedge,
            )
            for a in self._attempts
        ]

    def dispatched(self, verdict: Dispatch) -> None:
        """The request was sent to a backend."""
        self._attempts.append(_Attempt(verdict.backend_id, verdict.tier, self._clock()))
        if self.ttft is None:
            self._predicted_ttft = verdict.predicted_ttft
        self.overflow = verdict.overflow

    def hedged(self, verdict: Dispatch) -> None:
        """A second backend was asked beside the first one."""
        hedge = _Attempt(verdict.backend_id, verdict.tier, self._clock())
        hedge.hedge = True
        self._hedge = (hedge, verdict.overflow)
        self._has_hedged = True

    def hedge_won(self) -> None:
        """The second one goes on with the request; the first one's attempt is over."""
        if self._hedge is not None:
            attempt, self.overflow = self._hedge
            self._attempts.append(attempt)
            self._hedge = None

    def hedge_failed(self, reason: str) -> None:
        """The second one is out of it, for this reason."""
        if self._hedge is not None:
            attempt, _ = self._hedge
            attempt.error, attempt.ended = reason, self._clock()
            # Before the one that runs: the last attempt is the one that answered.
            self._attempts.insert(-1, attempt)
            self._hedge = None

    def first_chunk(self) -> None:
        """The first chunk of the whole request arrived."""
        if self.ttft is None:
            self.ttft = self._clock() - self._arrived

    def attempt_failed(self, reason: str) -> None:
        """The running attempt ended with this ErrorReason."""
        if self._attempts:
            attempt = self._attempts[-1]
            attempt.error = reason
            attempt.ended = self._clock()

    def resuming_at(self, tokens: int) -> None:
        """The answer goes on elsewhere after so many delivered tokens."""
        self._resumed_at.append(tokens)

    def complete(self, chunk: pb.GenerateChunk, served_model: str, resolved: str = "") -> None:
        """Puts the receipt on the last chunk. A backend's own receipt gives cost and model,
        what was masked, and what providers were asked; `resolved` is the model that an alias
        stood for."""
        cost = masked = 0
        trail: list[pb.ProviderAttempt] = []
        if chunk.HasField("receipt"):
            cost = chunk.receipt.cost_microusd
            masked = chunk.receipt.masked_entities
            served_model = chunk.receipt.served_model or served_model
            trail = list(chunk.receipt.provider_attempts)
            chunk.ClearField("receipt")
        receipt = chunk.receipt
        receipt.SetInParent()
        receipt.provider_attempts.extend(trail)
        receipt.served_model = served_model
        receipt.cost_microusd = cost
        if masked:
            receipt.masked_entities = masked
        if resolved:
            receipt.resolved_model = resolved
        if self._has_hedged:
            receipt.hedged = True
        if self.ttft is not None:
            write_seconds(receipt.ttft, self.ttft)
        if self._resumed_at:
            receipt.resumed_at_tokens.extend(self._resumed_at)
        if self.overflow is not None:
            receipt.overflow_reason = OVERFLOWS[self.overflow]
        attempts = self._attempts
        if not attempts:
            return
        receipt.tier = TIERS[attempts[-1].tier]
        receipt.backend_id = attempts[-1].backend_id
        write_seconds(receipt.queue_time, attempts[0].began - self._arrived)
        write_seconds(receipt.predicted_ttft, self._predicted_ttft)
        now = self._clock()
        for attempt in attempts:
            written = receipt.attempts.add()
            written.backend_id = attempt.backend_id
            written.tier = TIERS[attempt.tier]
            if attempt.error:
                written.error_reason = attempt.error
            if attempt.hedge:
                written.hedge = True
            ended = now if attempt.ended is None else attempt.ended
            write_seconds(written.duration, ended - attempt.began)


def write_seconds(target: Duration, seconds: float) -> None:
    """Sets a duration; what is negative counts as none."""
    # Both, zeros too: the target may hold an earlier value, and zero is one.
    target.seconds, target.nanos = divmod(max(int(seconds * 1e9), 0), 1_000_000_000)
