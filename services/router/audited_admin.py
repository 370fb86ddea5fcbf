"""RouterAdminService with an audit trail: what changes something is recorded before it is done.

It wraps the servicer that does it. Siblings ask each other behind it, so an act is in the trail
once, of the worker that was asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from anabranch.v1 import admin_pb2, admin_pb2_grpc
from services.chassis.audit.entry import Act, Scalar
from services.chassis.audit.trail import Trail
from services.chassis.principal import current_address, current_principal
from services.router.admin import Context


class AuditedAdmin(admin_pb2_grpc.RouterAdminServiceServicer):
    """What reads only is passed on as it is."""

    def __init__(self, inner: admin_pb2_grpc.RouterAdminServiceServicer, trail: Trail) -> None:
        self._inner = inner
        self._trail = trail

    async def ListBackends(self, request: admin_pb2.ListBackendsRequest, context: Context) -> Any:
        """Changes nothing."""
        return await self._inner.ListBackends(request, context)

    async def ExplainRoute(self, request: admin_pb2.ExplainRouteRequest, context: Context) -> Any:
        """Changes nothing."""
        return await self._inner.ExplainRoute(request, context)

    async def GetPolicy(self, request: admin_pb2.GetPolicyRequest, context: Context) -> Any:
        """Changes nothing."""
        return await self._inner.GetPolicy(request, context)

    async def DrainBackend(self, request: admin_pb2.DrainBackendRequest, context: Context) -> Any:
        """Recorded as "router.drain_backend"."""
        return await self._do("router.drain_backend", request.backend_id, request, context)

    async def UndrainBackend(
        self, request: admin_pb2.UndrainBackendRequest, context: Context
    ) -> Any:
        """Recorded as "router.undrain_backend"."""
        return await self._do("router.undrain_backend", request.backend_id, request, context)

    async def ResetBreaker(self, request: admin_pb2.ResetBreakerRequest, context: Context) -> Any:
        """Recorded as "router.reset_breaker"."""
        return await self._do("router.reset_breaker", request.backend_id, request, context)

    async def CancelRequest(self, request: admin_pb2.CancelRequestRequest, context: Context) -> Any:
        """Recorded as "router.cancel_request"."""
        return await self._do("router.cancel_request", request.request_id, request, context)

    async def SetLogLevel(self, request: admin_pb2.SetLogLevelRequest, context: Context) -> Any:
        """Recorded as "router.set_log_level"."""
        return await self._do("router.set_log_level", request.level, request, context)

    async def UpdatePolicy(self, request: admin_pb2.UpdatePolicyRequest, context: Context) -> Any:
        """Recorded as "router.update_policy", with a digest of the document."""
        document = request.policy_yaml.encode()
        details: dict[str, Scalar] = {
            "sha256": hashlib.sha256(document).hexdigest(),
            "bytes": len(document),
            "expected_version": request.expected_version,
        }
        return await self._do("router.update_policy", "policy", request, context, details)

    async def _do(
        self,
        action: str,
        target: str,
        request: Any,
        context: Context,
        details: Mapping[str, Scalar] | None = None,
    ) -> Any:
        caller = current_principal()
        act = Act(
            action,
            client_id=caller.client_id,
            tenant=caller.tenant,
            target=target,
            peer="" if (address := current_address()) is None else str(address),
            details=details or {},
        )
        method = getattr(self._inner, type(request).__name__.removesuffix("Request"))
        async with self._trail.act(act) as outcome:
            response = await method(request, context)
            if isinstance(response, admin_pb2.UpdatePolicyResponse):
                outcome["version"] = response.version
            elif isinstance(response, admin_pb2.SetLogLevelResponse):
                outcome["previous_level"] = response.previous_level
        return response
