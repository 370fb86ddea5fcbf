"""Feedback of callers: remembers what they may judge, and counts what they say of it.

Labels are those of the answer, which was given by a model that there is; a caller's own words are
in none. Where answers are remembered is somebody else's business.
"""

from __future__ import annotations

import logging

from opentelemetry.metrics import Meter

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext, Outlet
from services.chassis.principal import Principal
from services.router.core.values import Tier
from services.router.feedback.answers import Answers, Judgement
from services.router.observation import Remember

_log = logging.getLogger(__name__)

_TIERS = {pb.TIER_LOCAL: Tier.LOCAL, pb.TIER_CLOUD: Tier.CLOUD}


class Feedback:
    """What a router knows of its callers' satisfaction. `shared`: its siblings know no more."""

    def __init__(self, answers: Answers, meter: Meter) -> None:
        self._answers = answers
        self.shared = answers.shared
        self._rating = meter.create_histogram(
            "anabranch.router.feedback.rating",
            description="Ratings of answers by their callers, 1 to 5",
            explicit_bucket_boundaries_advisory=(1.0, 2.0, 3.0, 4.0, 5.0),
        )
        self._completed = meter.create_counter(
            "anabranch.router.feedback.completed",
            description="Answers of which callers said whether they did what was asked for",
        )

    def remember(self, context: CallContext, model: str, tier: Tier, backend_id: str) -> None:
        """A request of this model was answered. On the path of every request."""
        self._answers.remember(
            context.caller.client_id, context.request_id, (model, tier.value, backend_id)
        )

    async def take(
        self, request: model_pb2.FeedbackRequest, caller: Principal
    ) -> model_pb2.FeedbackResponse:
        """Records valid feedback. Raises Fault where the answer is unknown or judged otherwise."""
        given = Judgement(
            request.rating if request.HasField("rating") else None,
            request.completed if request.HasField("completed") else None,
        )
        judged = await self._answers.judge(caller.client_id, request.request_id, given)
        (model, tier, backend_id), new = judged
        labels = {"gen_ai.request.model": model, "anabranch.tier": tier}
        if new.rating is not None:
            self._rating.record(new.rating, labels)
        if new.completed is not None:
            self._completed.add(1, labels | {"completed": str(new.completed).lower()})
        if new != Judgement():
            # Which backend answers badly is seen here alone: as a label it would be unbounded.
            _log.info(
                "feedback",
                extra={
                    "request_id": request.request_id,
                    "model": model,
                    "tier": tier,
                    "backend": backend_id,
                    "rating": new.rating,
                    "completed": new.completed,
                },
            )
        return model_pb2.FeedbackResponse()


class RememberedOutlet:
    """Stands before the outlet of a request that may be answered by another's answer.

    Its last chunk alone says where that was made; elsewhere the router knows without reading it.
    """

    __slots__ = ("_context", "_model", "_outlet", "_remember")

    def __init__(
        self, outlet: Outlet, context: CallContext, model: str, remember: Remember
    ) -> None:
        self._outlet = outlet
        self._context = context
        self._model = model
        self._remember = remember

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        """See Outlet."""
        if last:
            receipt = pb.GenerateChunk.FromString(raw).receipt
            tier = _TIERS.get(receipt.tier)
            if tier is not None:
                self._remember(self._context, self._model, tier, receipt.backend_id)
        self._outlet.chunk(raw, last=last, tokens=tokens)

    def fail(self, fault: Fault) -> None:
        """See Outlet."""
        self._outlet.fail(fault)
