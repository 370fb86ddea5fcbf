"""RouterAdminService on the port that workers share: whichever is asked answers for all.

Does its own part as RouterAdmin does, asks the siblings for theirs with the caller's credential
over their private sockets, where plain RouterAdmin answers, and joins the answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import grpc

from anabranch.v1 import admin_pb2, admin_pb2_grpc
from services.chassis.errors import Fault
from services.chassis.workers import Worker, willing
from services.chassis.workers.worker import LOG_LEVEL
from services.router.admin import Context, RouterAdmin
from services.router.admin_merge import merge_backends, merge_statuses
from services.router.handler import RouterHandler
from services.router.legs import Routing
from services.router.policy.source import not_settled
from services.router.policy_updates import PolicyUpdates

_log = logging.getLogger(__name__)

_DRAINED = "drained/"
_FOLLOWED_WITHIN_S = 5.0
_LOOK_AGAIN_S = 0.05


class AdminOfAll(RouterAdmin):
    """The admin RPCs of a router of several workers.

    ExplainRoute and GetPolicy answer for this worker: any worker may get the request, and all
    have the same policy but for the moment in which it changes.
    """

    def __init__(
        self, routing: Routing, handler: RouterHandler, policy: PolicyUpdates, worker: Worker
    ) -> None:
        super().__init__(routing, handler, policy)
        self._worker = worker

    def follow_shared(self) -> None:
        """Obeys what was asked of other workers, before this one began too."""

        def obey(key: str, value: Any) -> None:
            if key.startswith(_DRAINED):
                self._pool.set_drained(key.removeprefix(_DRAINED), bool(value))

        self._worker.on_shared(obey)

    async def ListBackends(
        self, request: admin_pb2.ListBackendsRequest, context: Context
    ) -> admin_pb2.ListBackendsResponse:
        """Every backend that any serving worker knows."""
        own = await super().ListBackends(request, context)
        # One that has only begun to start has nothing in flight and would look ill.
        replies = await self._ask("ListBackends", request, context, starting_too=False)
        views = [own.backends]
        for index, reply in replies.items():
            if isinstance(reply, Fault):
                _log.warning(
                    "worker does not say", extra={"sibling": index, "cause": reply.message}
                )
            else:
                views.append(reply.backends)
        return admin_pb2.ListBackendsResponse(backends=merge_backends(views))

    async def DrainBackend(
        self, request: admin_pb2.DrainBackendRequest, context: Context
    ) -> admin_pb2.DrainBackendResponse:
        """Nothing new for it, from any worker."""
        own = super().DrainBackend(request, context)
        status = await self._of_backend(own, "DrainBackend", request, context)
        self._worker.share(_DRAINED + request.backend_id, True)
        return admin_pb2.DrainBackendResponse(backend=status)

    async def UndrainBackend(
        self, request: admin_pb2.UndrainBackendRequest, context: Context
    ) -> admin_pb2.UndrainBackendResponse:
        """It takes work again, from every worker."""
        own = super().UndrainBackend(request, context)
        status = await self._of_backend(own, "UndrainBackend", request, context)
        self._worker.share(_DRAINED + request.backend_id, None)
        return admin_pb2.UndrainBackendResponse(backend=status)

    async def ResetBreaker(
        self, request: admin_pb2.ResetBreakerRequest, context: Context
    ) -> admin_pb2.ResetBreakerResponse:
        """Every worker forgets its failures."""
        own = super().ResetBreaker(request, context)
        status = await self._of_backend(own, "ResetBreaker", request, context)
        return admin_pb2.ResetBreakerResponse(backend=status)

    async def CancelRequest(
        self, request: admin_pb2.CancelRequestRequest, context: Context
    ) -> admin_pb2.CancelRequestResponse:
        """Cancels it wherever it runs."""
        own = super().CancelRequest(request, context)
        await self._any(own, "CancelRequest", request, context)
        return admin_pb2.CancelRequestResponse()

    async def SetLogLevel(
        self, request: admin_pb2.SetLogLevelRequest, context: Context
    ) -> admin_pb2.SetLogLevelResponse:
        """Changes the level of every process of this router."""
        own = await super().SetLogLevel(request, context)
        willing(await self._ask("SetLogLevel", request, context))
        self._worker.share(LOG_LEVEL, request.level)
        return own

    async def UpdatePolicy(
        self, request: admin_pb2.UpdatePolicyRequest, context: Context
    ) -> admin_pb2.UpdatePolicyResponse:
        """Another policy, in force in every worker when this returns."""
        own = await super().UpdatePolicy(request, context)
        asked = admin_pb2.GetPolicyRequest()
        try:
            async with asyncio.timeout(_FOLLOWED_WITHIN_S):
                while True:
                    replies = willing(await self._ask("GetPolicy", asked, context))
                    # A later update may have come to some of them, and to this worker, already.
                    done = {own.version, self._policy.version}
                    if all(reply.version in done for reply in replies):
                        return own
                    await asyncio.sleep(_LOOK_AGAIN_S)
        except TimeoutError:
            raise not_settled("not every worker has the policy yet") from None

    async def _of_backend(
        self, own: Awaitable[Any], method: str, request: Any, context: Context
    ) -> admin_pb2.BackendStatus:
        replies = await self._any(own, method, request, context)
        return merge_statuses([reply.backend for reply in replies])

    async def _any(
        self, own: Awaitable[Any], method: str, request: Any, context: Context
    ) -> list[Any]:
        """The replies of all who know what is asked about. Raises Fault when nobody does."""
        found: list[Any] = []
        unknown: Fault | None = None
        try:
            found.append(await own)
        except Fault as fault:
            if fault.code is not grpc.StatusCode.NOT_FOUND:
                raise
            unknown = fault
        found += willing(await self._ask(method, request, context))
        if not found and unknown is not None:
            raise unknown
        return found

    async def _ask(
        self, method: str, request: Any, context: Context, *, starting_too: bool = True
    ) -> dict[int, Any]:
        metadata = dict(context.invocation_metadata() or ())
        return await self._worker.siblings.ask_all(
            lambda channel: getattr(admin_pb2_grpc.RouterAdminServiceStub(channel), method),
            request,
            str(metadata.get("authorization", "")),
            starting_too=starting_too,
        )
