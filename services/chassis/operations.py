"""OperationsService, which every process serves: how much is logged, seen and changed at run time.

A worker answers for its siblings too, which are asked over their private sockets; the supervisor
and later workers are told by what workers share. What operators ask of one kind of service is in
that service.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc

from anabranch.v1 import operations_pb2 as pb
from anabranch.v1 import operations_pb2_grpc
from services.chassis import logs
from services.chassis.audit.entry import Act, Scalar
from services.chassis.errors import Violation, invalid
from services.chassis.host import Host
from services.chassis.plain_calls import metadata_value
from services.chassis.principal import current_address, current_principal
from services.chassis.workers import Worker, willing
from services.chassis.workers.worker import LOG_LEVEL

_log = logging.getLogger(__name__)

FULL_NAME = "anabranch.v1.OperationsService"
UPDATE_LOG_LEVEL = "service.update_log_level"

Context: TypeAlias = grpc.aio.ServicerContext
Record: TypeAlias = Callable[[Act], AbstractAsyncContextManager[dict[str, Scalar]]]
"""Surrounds an act that the audit trail tells of, as Trail.act does."""


def change_log_level(level: str) -> str:
    """Changes what this process logs, and returns the level before. Raises Fault for no level."""
    if level not in logs.LEVELS:
        raise invalid([Violation("level", f"must be one of {', '.join(logs.LEVELS)}")])
    previous = logs.set_level(level)
    if level != previous:
        # Seen at all levels but one, which hides it for good.
        _log.warning("log level changed", extra={"from": previous, "to": level})
    return previous


class Operations(operations_pb2_grpc.OperationsServiceServicer):
    """The RPCs of one process."""

    async def GetLogLevel(
        self, request: pb.GetLogLevelRequest, context: Context
    ) -> pb.GetLogLevelResponse:
        """How much is logged."""
        return pb.GetLogLevelResponse(level=logs.current_level())

    async def UpdateLogLevel(
        self, request: pb.UpdateLogLevelRequest, context: Context
    ) -> pb.UpdateLogLevelResponse:
        """Another level."""
        return pb.UpdateLogLevelResponse(previous_level=change_log_level(request.level))


class OperationsOfAll(Operations):
    """The RPCs of several workers that share a port: they have one level but while it changes."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def UpdateLogLevel(
        self, request: pb.UpdateLogLevelRequest, context: Context
    ) -> pb.UpdateLogLevelResponse:
        """Another level in every worker when this returns, and in those that come later."""
        own = await super().UpdateLogLevel(request, context)
        replies = await self._worker.siblings.ask_all(
            lambda channel: operations_pb2_grpc.OperationsServiceStub(channel).UpdateLogLevel,
            request,
            metadata_value(context, "authorization"),
        )
        willing(replies)
        self._worker.share(LOG_LEVEL, request.level)
        return own


class AuditedOperations(operations_pb2_grpc.OperationsServiceServicer):
    """The RPCs with an audit trail: what changes something is recorded before it is done."""

    def __init__(self, inner: Operations, record: Record) -> None:
        self._inner = inner
        self._record = record

    async def GetLogLevel(self, request: pb.GetLogLevelRequest, context: Context) -> Any:
        """Changes nothing."""
        return await self._inner.GetLogLevel(request, context)

    async def UpdateLogLevel(self, request: pb.UpdateLogLevelRequest, context: Context) -> Any:
        """Recorded as "service.update_log_level"."""
        caller, address = current_principal(), current_address()
        act = Act(
            UPDATE_LOG_LEVEL,
            client_id=caller.client_id,
            tenant=caller.tenant,
            target=request.level,
            peer="" if address is None else str(address),
        )
        async with self._record(act) as outcome:
            response = await self._inner.UpdateLogLevel(request, context)
            outcome["previous_level"] = response.previous_level
        return response


def serve_operations(host: Host, record: Record | None = None) -> None:
    """Serves the RPCs of a process, to its siblings too where it has some. Before `start`.

    `record` takes the place of the host's own audit trail.
    """
    add = operations_pb2_grpc.add_OperationsServiceServicer_to_server
    operations = Operations() if host.worker is None else OperationsOfAll(host.worker)
    if host.worker is not None:
        # What a sibling asks is asked of this worker alone, so no question goes round.
        host.add_private_servicer(add, Operations())
    host.add_servicer(add, AuditedOperations(operations, record or host.audit.act), FULL_NAME)
