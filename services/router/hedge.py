"""A second backend, asked beside a first one that is late: whoever brings the first chunk goes on.

It plans and sends the second dispatch, and listens to it until it wins, fails or is dropped. What
becomes of the request is the exchange's.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from services.chassis.errors import Fault, Work, reason_name
from services.router.core.values import Dispatch, Request, Terms
from services.router.legs import Leg, Routing
from services.router.receipt import ReceiptBuilder
from services.router.receivers import Receiver


class Hedged(Protocol):
    """The exchange that hedges."""

    def is_late(self) -> bool:
        """Whether it runs, and still has no token and a caller."""

    def asked_elsewhere(self) -> Request:
        """What it would ask for, the backend that it is on left out."""

    def send_to(self, verdict: Dispatch, receiver: Receiver) -> Leg:
        """Sends the request to another backend too. Raises Fault."""

    def hedge_answered(self, leg: Leg, raw: bytes, last: bool, tokens: int) -> None:
        """The second backend was first: the request goes on there."""

    def leg_failed(self, leg: Leg, fault: Fault) -> None:
        """A backend failed the request: not to be asked again, and it may have done work."""

    def on_bug(self, fault: Fault) -> None:
        """Something of ours went wrong; the request ends."""


class Hedge:
    """The second dispatch of one request, planned or on its way."""

    __slots__ = ("_exchange", "_leg", "_receipt", "_routing", "_terms", "_timer")

    def __init__(
        self,
        exchange: Hedged,
        routing: Routing,
        receipt: ReceiptBuilder,
        terms: Terms,
        delay: float,
    ) -> None:
        """Asks another backend after `delay` seconds, if the first token is not there by then.

        `terms` are those that the request is sent under, whatever the policy says by now.
        """
        self._exchange = exchange
        self._routing = routing
        self._receipt = receipt
        self._terms = terms
        self._leg: Leg | None = None
        self._timer: asyncio.TimerHandle | None = routing.loop.call_later(delay, self._send)

    @property
    def is_running(self) -> bool:
        """Whether a second backend works on the request."""
        return self._leg is not None

    def take_over(self, receiver: Receiver) -> Leg:
        """The second dispatch becomes the request's only one."""
        leg, self._leg = self._leg, None
        assert leg is not None, "asked only while it runs"
        leg.hand_over(receiver)
        self._receipt.hedge_won()
        return leg

    def drop(self) -> None:
        """It is not wanted any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.drop()
            leg.settle(self._routing.spending, None)
            self._receipt.hedge_failed("CANCELLED")

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """See Receiver."""
        if self._leg is not None:
            self._exchange.hedge_answered(self._leg, raw, last, tokens)

    def on_failure(self, fault: Fault) -> None:
        """See Receiver. The first one still runs."""
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.settle(self._routing.spending, 0 if fault.work is Work.NOT_DISPATCHED else None)
            self._receipt.hedge_failed(reason_name(fault.reason))
            self._exchange.leg_failed(leg, fault)

    def on_bug(self, fault: Fault) -> None:
        """See Receiver."""
        self._exchange.on_bug(fault)

    def _send(self) -> None:
        self._timer = None
        if not self._exchange.is_late():
            return
        decisions = self._routing.decisions
        asked = self._exchange.asked_elsewhere()
        verdict = decisions.decide(asked, self._terms).verdict
        if not isinstance(verdict, Dispatch) or verdict.late:
            return
        affordable = verdict.cost if asked.budget is None else asked.budget
        if not decisions.hedging.withdraw(
            self._routing.clock(), answering=False, cost=verdict.cost, affordable=affordable
        ):
            return
        try:
            self._leg = self._exchange.send_to(verdict, self)
        except Fault:
            return  # the first one runs, and nobody was promised a second
        self._receipt.hedged(verdict)


class NoHedge:
    """Of a request that is not hedged."""

    is_running = False

    def take_over(self, receiver: Receiver) -> Leg:
        """Nobody asks it to."""
        raise AssertionError("no second backend was asked")

    def drop(self) -> None:
        """There is nothing to drop."""


NO_HEDGE = NoHedge()
