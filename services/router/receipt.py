"""Builds the RouteReceipt of one request: where it ran, how often, how long.

Times are taken from one clock, in seconds, from the request's arrival.
"""

from __future__ import annotations

from collections.abc import Callable

from anabranch.v1 import generation_pb2 as pb
from services.router.core.values import Dispatch, Overflow, Tier

TIERS = {Tier.LOCAL: pb.TIER_LOCAL, Tier.CLOUD: pb.TIER_CLOUD}
OVERFLOWS = {
    Overflow.SATURATED: pb.OVERFLOW_REASON_SATURATED,
    Overflow.ABSENT: pb.OVERFLOW_REASON_ABSENT,
    Overflow.UNHEALTHY: pb.OVERFLOW_REASON_UNHEALTHY,
    Overflow.FAILED: pb.OVERFLOW_REASON_FAILED,
}


class ReceiptBuilder:
    """Collects what happened to a request, and puts it on the last chunk."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrived = clock()
        self._attempt_began = self._arrived
        self._receipt = pb.RouteReceipt()
        self._first_chunk_at: float | None = None

    @property
    def attempts(self) -> int:
        """Dispatches so far."""
        return len(self._receipt.attempts)

    def elapsed(self) -> float:
        """Seconds since arrival."""
        return self._clock() - self._arrived

    def dispatched(self, verdict: Dispatch, backend_id: str) -> None:
        """The request was sent to a backend."""
        now = self._clock()
        if not self._receipt.attempts:
            _seconds(self._receipt.queue_time, now - self._arrived)
        self._attempt_began = now
        self._receipt.attempts.add(backend_id=backend_id, tier=TIERS[verdict.tier])
        self._receipt.tier = TIERS[verdict.tier]
        self._receipt.backend_id = backend_id
        if self._first_chunk_at is None:
            _seconds(self._receipt.predicted_ttft, verdict.predicted_ttft)
        # Of the last attempt, as the tier is: a later one may be back in the preferred tier.
        self._receipt.ClearField("overflow_reason")
        if verdict.overflow is not None:
            self._receipt.overflow_reason = OVERFLOWS[verdict.overflow]

    def first_chunk(self) -> None:
        """The first chunk of the whole request arrived."""
        if self._first_chunk_at is None:
            self._first_chunk_at = self._clock()
            _seconds(self._receipt.ttft, self._first_chunk_at - self._arrived)

    def attempt_failed(self, reason: str) -> None:
        """The running attempt ended with this ErrorReason."""
        if self._receipt.attempts:
            attempt = self._receipt.attempts[-1]
            attempt.error_reason = reason
            _seconds(attempt.duration, self._clock() - self._attempt_began)

    def resuming_at(self, tokens: int) -> None:
        """The answer goes on elsewhere after so many delivered tokens."""
        self._receipt.resumed_at_tokens.append(tokens)

    def complete(self, chunk: pb.GenerateChunk, served_model: str) -> None:
        """Puts the receipt on the last chunk. A backend's own receipt gives cost and model."""
        if self._receipt.attempts and not self._receipt.attempts[-1].error_reason:
            _seconds(self._receipt.attempts[-1].duration, self._clock() - self._attempt_began)
        self._receipt.cost_microusd = chunk.receipt.cost_microusd
        self._receipt.served_model = chunk.receipt.served_model or served_model
        chunk.receipt.CopyFrom(self._receipt)


def _seconds(target: object, seconds: float) -> None:
    target.FromNanoseconds(int(max(seconds, 0.0) * 1e9))  # type: ignore[attr-defined]
