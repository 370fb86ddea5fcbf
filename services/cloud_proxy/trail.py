"""The attempts that a request took, as its receipt tells them."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import ProviderFailure
from services.cloud_proxy.attempts import Attempt


class Trail:
    """What was asked of providers, in order. It knows keys by their number alone."""

    __slots__ = ("_attempts",)

    def __init__(self) -> None:
        self._attempts: list[Attempt] = []

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        """One attempt began."""
        self._attempts.append(attempt)

    def failures(self) -> list[ProviderFailure]:
        """Those of the attempts that failed."""
        return [attempt.failure for attempt in self._attempts if attempt.failure is not None]

    def write(self, receipt: pb.RouteReceipt, now: float) -> None:
        """Puts the trail into a receipt; the attempt that still runs has lasted until `now`."""
        for attempt in self._attempts:
            failure = attempt.failure
            written = receipt.provider_attempts.add(
                provider=attempt.candidate.route.profile.name,
                model=attempt.candidate.route.model.name,
                key=attempt.key,
                error=str(failure.kind) if failure is not None else "",
                http_status=attempt.seen.http_status or 0,
                provider_request_id=attempt.seen.request_id,
            )
            seconds = now - attempt.began if attempt.seconds is None else attempt.seconds
            written.duration.FromNanoseconds(int(seconds * 1e9))
