"""How a worker leaves while its siblings go on serving the same port: no call may notice.

A server that stops refuses the calls which reach it meanwhile. So it is stopped only when
nothing can reach it any more: no new connection, and the callers of the old ones sent away.
"""

from __future__ import annotations

import asyncio

from services.chassis.http2.server import Server
from services.chassis.model_service import ModelService
from services.chassis.workers.worker import Worker

_LONGEST_AGE_S = 10.0
# Callers hear at once that they are to leave; those that do not are not waited for this long.
_LEAVING_S = 2.0
_LOOK_EVERY_S = 0.1
REASON = "this worker is being replaced; open another session"


def connection_age(drain_timeout: float) -> float:
    """Seconds after which callers are sent to a new connection, so that a drain can end in time.

    It also spreads callers over the workers anew, which the kernel does only for new connections.
    """
    return min(_LONGEST_AGE_S, max(drain_timeout / 2, 1.0))


async def retire(
    worker: Worker, server: Server, model_service: ModelService | None, drain_timeout: float
) -> None:
    """Returns when no call can come, or after `drain_timeout` s, or when all are to stop."""
    server.close_listeners()
    if model_service is not None:
        model_service.retire(drain_timeout, REASON)
    server.send_away(REASON)
    clock = asyncio.get_running_loop().time
    began = clock()
    while worker.retiring and clock() - began < drain_timeout:  # no event tells of connections
        idle = model_service is None or not len(model_service.requests)
        if idle and (clock() - began > _LEAVING_S or not server.connections):
            return
        await asyncio.sleep(_LOOK_EVERY_S)
