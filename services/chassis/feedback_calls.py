"""The Feedback RPC on the wire: checks the request, and asks the siblings where one may know more.

Whether a service takes feedback at all, and what becomes of it, is its handler's business.
"""

from __future__ import annotations

import grpc

from anabranch.v1 import errors_pb2, model_pb2, model_pb2_grpc
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.model_handler import ModelHandler, TakesFeedback
from services.chassis.plain_calls import metadata_value
from services.chassis.principal import Principal, current_principal
from services.chassis.validation import REQUEST_ID
from services.chassis.workers import Worker

_RATINGS = range(1, 6)
# One wrong id makes a call to every sibling, over a channel that all have for what operators ask
# as well, and on which a hundred calls find room.
_MOST_QUESTIONS = 16


class FeedbackCalls:
    """Feedback for callers, and for the siblings that were asked in this process's stead."""

    def __init__(self, handler: ModelHandler, worker: Worker | None) -> None:
        self._handler = handler
        self._worker = worker
        self._questions = 0

    async def of_caller(
        self, request: model_pb2.FeedbackRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.FeedbackResponse:
        """Takes it here, or wherever among the siblings the answer is known. Raises Fault."""
        try:
            return await self._take(request, current_principal())
        except Fault as fault:
            if self._worker is None or fault.code is not grpc.StatusCode.NOT_FOUND:
                raise
            if isinstance(self._handler, TakesFeedback) and self._handler.feedback_is_shared:
                raise
            unknown = fault
        if self._questions >= _MOST_QUESTIONS:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                "too much feedback at once on answers that are not known here; ask again",
                retry_after=0.5,
            )
        self._questions += 1
        try:
            replies = await self._worker.siblings.ask_all(
                lambda channel: model_pb2_grpc.ModelServiceStub(channel).Feedback,
                request,
                metadata_value(context, "authorization"),
            )
        finally:
            self._questions -= 1
        for reply in replies.values():
            if isinstance(reply, model_pb2.FeedbackResponse):
                return reply
        for index, refusal in replies.items():
            if refusal.code is grpc.StatusCode.ALREADY_EXISTS:
                raise refusal
            if refusal.code is not grpc.StatusCode.NOT_FOUND:
                raise Fault(
                    errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                    f"worker {index} did not say whether it knows the answer; ask again",
                    retry_after=1.0,
                ) from refusal
        raise unknown

    async def of_sibling(
        self, request: model_pb2.FeedbackRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.FeedbackResponse:
        """Takes it here or not at all: no question goes round. Raises Fault."""
        return await self._take(request, current_principal())

    async def _take(
        self, request: model_pb2.FeedbackRequest, caller: Principal
    ) -> model_pb2.FeedbackResponse:
        handler = self._handler
        if not isinstance(handler, TakesFeedback):
            raise Fault(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                "a backend takes no feedback; send it to the router that gave the answer",
                metadata={"feature": "feedback"},
            )
        if found := _violations(request):
            raise invalid(found)
        return await handler.feedback(request, caller)


def _violations(request: model_pb2.FeedbackRequest) -> list[Violation]:
    found: list[Violation] = []
    if not request.request_id:
        found.append(Violation("request_id", "is required; each answer names its own"))
    elif not REQUEST_ID.match(request.request_id):
        found.append(Violation("request_id", "must be 1 to 128 printable ASCII characters"))
    if not (request.HasField("rating") or request.HasField("completed")):
        found.append(Violation("rating", "is required where `completed` is left out"))
    elif request.HasField("rating") and request.rating not in _RATINGS:
        found.append(Violation("rating", "must be 1 to 5"))
    return found
