"""One dispatch of a request: what is sent to a backend, and the money set aside for it.

An exchange has one leg at a time, and two while it hedges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from anabranch.v1 import generation_pb2 as pb
from services.chassis.budgets.ledger import Reservation
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext
from services.router import refusals
from services.router.asking import Asking
from services.router.core.values import Dispatch, Tier
from services.router.decisions import Decisions
from services.router.pool import Pool
from services.router.receipt import write_seconds
from services.router.receivers import Receiver
from services.router.spending import Spending
from services.router.uplink import MAX_START_BYTES, Uplink
from services.router.waiting_line import Waiter, WaitingLine

DEADLINE_MARGIN_S = 0.05
"""A backend's deadline is a little earlier than the caller's, so that its own word arrives."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What all requests of a router share. Deadlines are on the clock of the loop."""

    pool: Pool
    decisions: Decisions
    line: WaitingLine
    spending: Spending
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def join_line(
        self,
        waiter: Waiter,
        asking: Asking,
        deadline: float,
        limit: float | None,
        *,
        by_choice: bool,
    ) -> Fault | None:
        """Puts a request into its model's line, or says why not; see WaitingLine.join."""
        left = deadline - self.loop.time() - DEADLINE_MARGIN_S
        objective = None if by_choice else asking.terms.objective
        return self.line.join(waiter, asking.model, asking.klass, left, limit, objective)


class Leg:
    """A request at a backend, as number `number` of the session there."""

    __slots__ = (
        "_asking",
        "dispatch",
        "number",
        "reservation",
        "sent_at",
        "served_model",
        "uplink",
    )

    def __init__(
        self,
        uplink: Uplink,
        number: int,
        dispatch: Dispatch,
        reservation: Reservation | None,
        sent_at: float,
        asking: Asking,
    ) -> None:
        self.uplink = uplink
        self.number = number
        self.dispatch = dispatch
        self.reservation = reservation
        self.sent_at = sent_at
        self._asking = asking
        # Kept as it is now: a swap meanwhile makes other weights of the name, not of the answer.
        info = uplink.backend.models.get(asking.terms.name_in(dispatch.tier))
        self.served_model = info.served_model if info is not None else ""
        """What its backend really serves under the model's name there."""

    def answers(self, now: float) -> None:
        """Its first chunk came."""
        self.uplink.requests.answers(self.number, now - self.sent_at)

    def cancel(self) -> None:
        """Its backend is asked to stop; the last chunk still comes."""
        self.uplink.requests.cancel(self.number)

    def hand_over(self, receiver: Receiver) -> None:
        """Somebody else listens to it from now on."""
        self.uplink.requests.hand_over(self.number, receiver)

    def drop(self) -> None:
        """Nobody wants its answer any more; what still comes is not heard."""
        self.uplink.requests.disown(self.number)
        self.cancel()

    def settle(self, spending: Spending, cost: int | None) -> None:
        """It is over and cost so much; None when nobody said, and all that was set aside counts."""
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            actual = reservation.amount if cost is None else max(cost, 0)
            spending.settle(reservation, actual)
            self._asking.spend(actual - reservation.amount)


def send(
    routing: Routing,
    asking: Asking,
    request: pb.GenerateRequest,
    verdict: Dispatch,
    context: CallContext,
    traceparent: str,
    receiver: Receiver,
) -> Leg:
    """Sends a request to the backend that was chosen, under the model's name there.

    Raises Fault when it cannot be sent: too large with what is added, or its money is gone.
    """
    uplink = routing.pool.uplink(verdict.backend_id)
    assert uplink is not None, "decided on the pool as it is now"
    left = context.deadline - routing.loop.time() - DEADLINE_MARGIN_S
    write_seconds(request.timeout, max(left, 0.001))
    reservation = None
    mask: tuple[pb.PiiKind, ...] = ()
    if verdict.tier is Tier.CLOUD:
        request.model = asking.terms.cloud
        # A router in front of this one has its own policy: what either wants masked is.
        mask = (
            *routing.decisions.masks(asking.tenant),
            *cast("frozenset[pb.PiiKind]", context.mask),
        )
        reservation = _set_aside(routing, asking, request, verdict)
    else:
        request.model = asking.terms.local
        _limit_cost(request, asking.max_cost)
    raw = request.SerializeToString()
    if len(raw) > MAX_START_BYTES:
        if reservation is not None:
            routing.spending.release(reservation)
        raise refusals.too_large_to_forward(len(raw), MAX_START_BYTES)
    asking.spend(verdict.cost)
    number = uplink.requests.start(
        raw, verdict.tokens, asking.blocks, context.caller, traceparent, receiver, mask
    )
    return Leg(uplink, number, verdict, reservation, routing.clock(), asking)


def _set_aside(
    routing: Routing, asking: Asking, request: pb.GenerateRequest, verdict: Dispatch
) -> Reservation:
    """Money for the cloud, more than which the proxy may not spend where a budget limits it."""
    limited = routing.spending.available(asking.payer) is not None
    reservation = routing.spending.reserve(asking.payer, verdict.cost)
    if reservation is None:
        raise refusals.no_budget("the cloud budget was used up in this moment")
    own = asking.max_cost
    if limited:
        own = verdict.cost if own is None else min(own, verdict.cost)
    _limit_cost(request, own)
    return reservation


def _limit_cost(request: pb.GenerateRequest, most: int | None) -> None:
    """Also takes out what an earlier dispatch of the same request wrote there."""
    if most is not None:
        request.routing.max_cost_microusd = most
    elif request.HasField("routing"):
        request.routing.ClearField("max_cost_microusd")
