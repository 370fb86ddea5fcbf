"""Notes callers that were turned away: bad credentials, and rights that they do not have.

Anybody can cause these, so only so many are written in a second; the others are counted. Never the
credential.
"""

from __future__ import annotations

import asyncio

from anabranch.v1 import errors_pb2
from services.chassis.audit.entry import Act
from services.chassis.audit.trail import Trail
from services.chassis.errors import Fault, reason_name
from services.chassis.principal import known_principal

REFUSED = "rpc.refused"
OMITTED = "refusals.omitted"
MOST_PER_SECOND = 100

TURNED_AWAY = frozenset(
    {errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED, errors_pb2.ERROR_REASON_ACCESS_DENIED}
)


def refusal(method: str, fault: Fault, peer: str) -> Act:
    """The act of turning away whoever called, from the address `peer`; who, where that is known."""
    caller = known_principal()
    return Act(
        REFUSED,
        client_id=caller.client_id if caller else "",
        tenant=caller.tenant if caller else "",
        target=method,
        succeeded=False,
        peer=peer,
        details={"error": reason_name(fault.reason)},
    )


class Refusals:
    """What a guard calls with the end of each failed RPC."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._noted = 0
        self._omitted = 0
        self._window: asyncio.TimerHandle | None = None

    def __call__(self, method: str, fault: Fault, peer: str) -> None:
        """`peer` is the address that the call came from."""
        if fault.reason not in TURNED_AWAY or not self._trail.enabled:
            return
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(1.0, self._next_second)
        # While nothing can be written, strangers must not take the room of those who are let in.
        if self._noted >= MOST_PER_SECOND or self._trail.half_full:
            self._omitted += 1
            return
        self._noted += 1
        self._trail.note(refusal(method, fault, peer))

    def _next_second(self) -> None:
        self._window = None
        self._noted = 0
        if not self._omitted:
            return
        if self._trail.half_full:
            self._window = asyncio.get_running_loop().call_later(1.0, self._next_second)
            return
        count, self._omitted = self._omitted, 0
        self._trail.note(Act(OMITTED, succeeded=False, details={"count": count}))
