"""How a worker leaves while its siblings go on serving the same port: no call may notice.

A gRPC server that stops cancels the calls which reach it meanwhile. So it is stopped only when
nothing can reach it any more: no new connection, and the old ones sent away by their age.
"""

from __future__ import annotations

import asyncio
import logging

from services.chassis.model_service import ModelService
from services.chassis.workers.shared_port import connections, stop_listening
from services.chassis.workers.worker import Worker

_log = logging.getLogger(__name__)

_LONGEST_AGE_S = 10.0
_JITTER = 1.1
"""gRPC ends a connection at its age give or take a tenth."""
_SLACK_S = 0.5
_LOOK_EVERY_S = 0.1
REASON = "this worker is being replaced; open another session"


def connection_age(drain_timeout: float) -> float:
    """Seconds after which callers are sent to a new connection, so that a drain can end in time.

    It also spreads callers over the workers anew, which the kernel does only for new connections.
    """
    return min(_LONGEST_AGE_S, max(drain_timeout / 2, 1.0))


async def retire(
    worker: Worker, address: str, model_service: ModelService | None, drain_timeout: float
) -> None:
    """Returns when no call can come, or after `drain_timeout` s, or when all are to stop."""
    port = int(address.rpartition(":")[2])
    if not stop_listening(port):
        _log.warning("the listening socket was not found: new calls may be refused")
    if model_service is not None:
        model_service.retire(drain_timeout, REASON)
    clock = asyncio.get_running_loop().time
    began = clock()
    aged = connection_age(drain_timeout) * _JITTER + _SLACK_S
    while worker.retiring and clock() - began < drain_timeout:  # no event tells of connections
        idle = model_service is None or model_service.idle
        if idle and (clock() - began > aged or not connections(port)):
            return
        await asyncio.sleep(_LOOK_EVERY_S)
