"""RouterAdminService: what operators ask of a router.

Translates between the wire and the pool; it decides and remembers nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any, TypeAlias

import grpc

from anabranch.v1 import admin_pb2, admin_pb2_grpc, errors_pb2
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.operations import change_log_level
from services.chassis.principal import current_principal
from services.chassis.validation import validate_generate
from services.router.core import values
from services.router.core.breaker import BreakerState
from services.router.core.slow_start import warmth
from services.router.explanation import explain
from services.router.handler import RouterHandler
from services.router.legs import Routing
from services.router.policy_updates import PolicyUpdates
from services.router.receipt import TIERS
from services.router.uplink import Uplink

_log = logging.getLogger(__name__)

_STATES = {
    values.Health.CONNECTING: admin_pb2.BACKEND_STATE_CONNECTING,
    values.Health.READY: admin_pb2.BACKEND_STATE_READY,
    values.Health.DRAINING: admin_pb2.BACKEND_STATE_DRAINING,
    values.Health.LOST: admin_pb2.BACKEND_STATE_LOST,
}
_BREAKERS = {
    BreakerState.CLOSED: admin_pb2.BREAKER_STATE_CLOSED,
    BreakerState.OPEN: admin_pb2.BREAKER_STATE_OPEN,
    BreakerState.HALF_OPEN: admin_pb2.BREAKER_STATE_HALF_OPEN,
}
Context: TypeAlias = grpc.aio.ServicerContext


class RouterAdmin(admin_pb2_grpc.RouterAdminServiceServicer):
    """The admin RPCs of one router process."""

    def __init__(self, routing: Routing, handler: RouterHandler, policy: PolicyUpdates) -> None:
        self._routing = routing
        self._pool = routing.pool
        self._handler = handler
        self._policy = policy

    async def ListBackends(
        self, request: admin_pb2.ListBackendsRequest, context: Context
    ) -> admin_pb2.ListBackendsResponse:
        """Every known backend."""
        return admin_pb2.ListBackendsResponse(
            backends=[self._status(uplink) for uplink in self._pool.uplinks()]
        )

    async def DrainBackend(
        self, request: admin_pb2.DrainBackendRequest, context: Context
    ) -> admin_pb2.DrainBackendResponse:
        """Nothing new for it."""
        return admin_pb2.DrainBackendResponse(backend=self._set_drained(request.backend_id, True))

    async def UndrainBackend(
        self, request: admin_pb2.UndrainBackendRequest, context: Context
    ) -> admin_pb2.UndrainBackendResponse:
        """It takes work again."""
        return admin_pb2.UndrainBackendResponse(
            backend=self._set_drained(request.backend_id, False)
        )

    async def ResetBreaker(
        self, request: admin_pb2.ResetBreakerRequest, context: Context
    ) -> admin_pb2.ResetBreakerResponse:
        """Forgets its failures."""
        uplink = self._find(request.backend_id)
        uplink.backend.reset_breaker()
        return admin_pb2.ResetBreakerResponse(backend=self._status(uplink))

    async def ExplainRoute(
        self, request: admin_pb2.ExplainRouteRequest, context: Context
    ) -> admin_pb2.ExplainRouteResponse:
        """The decision, without acting on it."""
        validate_generate(request.request, path="request.")
        return explain(self._routing, request.request, current_principal().tenant)

    async def CancelRequest(
        self, request: admin_pb2.CancelRequestRequest, context: Context
    ) -> admin_pb2.CancelRequestResponse:
        """Cancels a running request."""
        if not self._handler.cancel_request(request.request_id):
            raise Fault(
                errors_pb2.ERROR_REASON_NOT_FOUND,
                f"no request {request.request_id!r} is running here",
            )
        return admin_pb2.CancelRequestResponse()

    async def SetLogLevel(
        self, request: admin_pb2.SetLogLevelRequest, context: Context
    ) -> admin_pb2.SetLogLevelResponse:
        """Changes the process's log level."""
        return admin_pb2.SetLogLevelResponse(previous_level=change_log_level(request.level))

    async def GetPolicy(
        self, request: admin_pb2.GetPolicyRequest, context: Context
    ) -> admin_pb2.GetPolicyResponse:
        """What is in force in this process."""
        return self._policy.get()

    async def UpdatePolicy(
        self, request: admin_pb2.UpdatePolicyRequest, context: Context
    ) -> admin_pb2.UpdatePolicyResponse:
        """Another policy, whole or not at all."""
        return await self._policy.update(request)

    def _status(self, uplink: Uplink) -> admin_pb2.BackendStatus:
        return _status(
            uplink,
            slow_start=self._routing.decisions.policy_now().slow_start,
            prefix_blocks=self._pool.prefixes.count(uplink.backend.id),
        )

    def _find(self, backend_id: str) -> Uplink:
        if not backend_id:
            raise invalid([Violation("backend_id", "is required; ListBackends lists the ids")])
        uplink = self._pool.uplink(backend_id)
        if uplink is None:
            raise Fault(
                errors_pb2.ERROR_REASON_NOT_FOUND,
                f"no backend {backend_id!r}; ListBackends lists the ids",
            )
        return uplink

    def _set_drained(self, backend_id: str, drained: bool) -> admin_pb2.BackendStatus:
        uplink = self._find(backend_id)
        self._pool.set_drained(backend_id, drained)
        _log.info("drain by operator", extra={"backend": backend_id, "drained": drained})
        return self._status(uplink)


def _status(uplink: Uplink, *, slow_start: float, prefix_blocks: int) -> admin_pb2.BackendStatus:
    backend = uplink.backend
    status = admin_pb2.BackendStatus(
        backend_id=backend.id,
        address=backend.instance.address,
        tier=TIERS[backend.tier],
        state=_STATES[backend.health],
        models=sorted(backend.model_names),
        in_flight=backend.in_flight,
        drained=backend.drained,
        version=backend.version,
        zone=backend.zone,
        detail=backend.detail,
        breaker=_BREAKERS[backend.breaker.state(time.monotonic())],
        warmth=warmth(time.monotonic() - backend.tracker.state.ready_since, slow_start),
        prefix_blocks=prefix_blocks,
    )
    if backend.drained and backend.health is values.Health.READY:
        status.state = admin_pb2.BACKEND_STATE_DRAINING
        status.detail = "drained by an operator"
    if backend.report is not None:
        status.load.CopyFrom(backend.report)
        _set(status.load_age, time.monotonic() - backend.report_at)
    return status


def _set(target: Any, seconds: float) -> None:
    target.FromNanoseconds(int(max(seconds, 0.0) * 1e9))
