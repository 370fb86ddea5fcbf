"""Questions to providers that are answered whole: vectors and token counts.

One goes through the loop of attempts as a Call does, and is awaited by its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from opentelemetry.trace import Span

from services.chassis.model_handler import CallContext, ids_of
from services.cloud_proxy.answer import ProviderFailure
from services.cloud_proxy.attempts import Attempt, Attempts, log_failure
from services.cloud_proxy.candidates import Candidate
from services.cloud_proxy.dialects.fields import broken
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.streams import StreamEvent

T = TypeVar("T")
Decode = Callable[[Candidate, bytes], T]


class Ask(Generic[T]):
    """One question; `decode` reads the body of its answer. `operation` names it in telemetry."""

    def __init__(
        self, operation: str, decode: Decode[T], context: CallContext, observer: Observer
    ) -> None:
        self._operation = operation
        self._decode = decode
        self._context = context
        self._observer = observer
        self._span: Span | None = None
        self._found: list[T] = []

    async def answer(self, candidates: Iterable[Candidate], attempts: Attempts) -> T:
        """The answer. Raises ProviderFailure."""
        try:
            await attempts.run(candidates, self, self._context.deadline)
        finally:
            if self._span is not None:
                self._observer.cut_off(self._span)
        if not self._found:
            raise broken("the provider's answer ended before it was complete")
        return self._found[-1]

    async def admit(self, candidate: Candidate) -> None:
        """See Exchange: its caller has seen to the money."""

    def receiver(self, candidate: Candidate) -> _Whole[T]:
        """See Exchange."""
        return _Whole(self, candidate)

    def attempt_began(self, attempt: Attempt) -> None:
        """See Exchange."""
        self._span = self._observer.attempt_began(
            self._operation, attempt, self._context.traceparent
        )

    def attempt_ended(self, attempt: Attempt) -> None:
        """See Exchange."""
        self._observer.attempt_ended(self._operation, attempt, self._span)
        self._span = None
        if attempt.failure is not None:
            log_failure(attempt, ids_of(self._context))

    def take(self, candidate: Candidate, body: bytes) -> None:
        """What the receiver has read. Raises ProviderFailure."""
        self._found.append(self._decode(candidate, body))


class _Whole(Generic[T]):
    """The receiver of one attempt."""

    def __init__(self, ask: Ask[T], candidate: Candidate) -> None:
        self._ask = ask
        self._candidate = candidate
        self.delivered = 0

    def events(self, events: list[StreamEvent]) -> bool:
        """See Receiver."""
        raise broken("the provider streamed what was to come whole")

    def body(self, body: bytes) -> None:
        """See Receiver."""
        self._ask.take(self._candidate, body)

    def end(self) -> None:
        """See Receiver."""


def is_advisory(failure: ProviderFailure) -> bool:
    """Whether a failed count may be replaced by an estimate: the request itself was not refused."""
    return failure.kind not in ("refused_request", "too_long")
