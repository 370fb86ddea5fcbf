"""The router as a ModelHandler: opens exchanges, forwards the small RPCs.

What happens to one request is in exchange.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from anabranch.v1 import errors_pb2, generation_pb2, model_pb2, model_pb2_grpc, session_pb2
from services.chassis.auth_client import TokenSource
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.chassis.principal import Principal
from services.router.asking import Asking
from services.router.catalogue import catalogue
from services.router.core import values
from services.router.exchange import Exchange
from services.router.feedback.intake import Feedback, RememberedOutlet
from services.router.legs import Routing
from services.router.observation import Observer, Remember
from services.router.refusals import kept_from_cloud, not_charged, refused
from services.router.response_cache.cache import ResponseCache
from services.router.spending import payer_of

Reply = TypeVar("Reply", bound=Message)
_UNARY_ATTEMPTS = 3


class RouterHandler:
    """Answers every request through a backend of the pool."""

    def __init__(
        self,
        routing: Routing,
        tokens: TokenSource,
        observer: Observer,
        ready: Callable[[], session_pb2.SessionReady],
        cache: ResponseCache,
        feedback: Feedback | None = None,
    ) -> None:
        self._routing = routing
        self._pool = routing.pool
        self._tokens = tokens
        self._observer = observer
        self._ready = ready
        self._cache = cache
        self._feedback = feedback
        self._remember = None if feedback is None else feedback.remember
        self._exchanges: set[Exchange] = set()
        # On behalf of all who ask the same: the cache knows who they are.
        self._shared: set[Exchange] = set()

    def open(
        self,
        request: generation_pb2.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
    ) -> Cancel:
        """Starts a request; see ModelHandler."""
        cache = self._cache
        if cache.serves(context.caller.tenant):
            model = self._routing.decisions.resolve(request.model, request.routing.affinity_key)
            if cache.takes(request, model):
                start = partial(self._start, running=self._shared, model=model)
                if self._remember is not None:
                    # Each caller's own answer is remembered, whoever's request brought it.
                    outlet = RememberedOutlet(outlet, context, request.model, self._remember)
                return cache.open(request, context, outlet, start, model)
        return self._start(request, context, outlet, self._exchanges, remember=self._remember)

    def cancel_request(self, request_id: str) -> bool:
        """Cancels a running request, whoever started it; false when there is none."""
        found = [e for e in self._exchanges if e.request_id == request_id]
        for exchange in found:
            exchange.cancel()
        return self._cache.cancel_request(request_id) or bool(found)

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Forwards to a backend of the model; to the cloud only what no budget has to pay."""
        about = generation_pb2.GenerateRequest(model=request.model)

        def send(stub: model_pb2_grpc.ModelServiceStub, model: str, **how: Any) -> Any:
            request.model = model
            return stub.Embed(request, **how)

        with self._observer.call("embeddings", request.model, context) as onward:
            return await self._forward(about, context, send, onward, costs=True)

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """Forwards to a backend of the model that the measured request itself may use."""
        about = generation_pb2.GenerateRequest(model=request.model, routing=request.request.routing)

        def send(stub: model_pb2_grpc.ModelServiceStub, model: str, **how: Any) -> Any:
            request.model = request.request.model = model
            return stub.CountTokens(request, **how)

        with self._observer.call("count_tokens", request.model, context) as onward:
            return await self._forward(about, context, send, onward)

    async def list_models(self) -> Sequence[generation_pb2.ModelInfo]:
        """What the ready backends serve, under the policy's names too."""
        backends = [uplink.backend for uplink in self._pool.uplinks()]
        return catalogue(backends, self._routing.decisions.policy_now())

    @property
    def feedback_is_shared(self) -> bool:
        """Whether no sibling knows of an answer that this process does not."""
        return self._feedback is None or self._feedback.shared

    async def feedback(
        self, request: model_pb2.FeedbackRequest, caller: Principal
    ) -> model_pb2.FeedbackResponse:
        """Records what a caller says of an answer; see TakesFeedback."""
        if self._feedback is None:
            raise Fault(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                "this router takes no feedback: its operator has switched it off",
                metadata={"feature": "feedback"},
            )
        return await self._feedback.take(request, caller)

    def ready(self) -> session_pb2.SessionReady:
        """The greeting of a session."""
        return self._ready()

    def load(self) -> session_pb2.LoadReport | None:
        """A router reports none: its callers do not balance over it."""
        return None

    def _start(
        self,
        request: generation_pb2.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        running: set[Exchange],
        model: str = "",
        remember: Remember | None = None,
    ) -> Cancel:
        observation = self._observer.begin(request, context, remember)
        exchange = Exchange(self._routing, request, context, outlet, observation, running, model)
        exchange.begin()
        return exchange.cancel

    async def _forward(
        self,
        about: generation_pb2.GenerateRequest,
        context: CallContext,
        send: Callable[..., grpc.aio.UnaryUnaryCall[Message, Reply]],
        traceparent: str,
        *,
        costs: bool = False,
    ) -> Reply:
        """Asks backends of the model in turn. Both RPCs are idempotent.

        `traceparent` is what they are told, and `costs` says that the cloud's answer has a price.
        """
        routing = self._routing
        payer = payer_of(context.caller, about.model)
        asking = Asking(about, payer, routing.decisions, routing.spending)
        asked = asking.values()
        stays = self._why_it_stays(asking, context, limited=costs and asked.budget is not None)
        if stays is not None:
            # What is left of a budget is no matter for what will not be paid from it.
            asked = asked._replace(budget=None)
        uplinks = routing.decisions.open_to(asked, asking.terms)
        if stays is not None:
            here = [u for u in uplinks if u.backend.tier is not values.Tier.CLOUD]
            if uplinks and not here:
                raise stays
            uplinks = here
        failure: Fault | None = None
        for uplink in uplinks[:_UNARY_ATTEMPTS]:
            token = await self._tokens.token()
            try:
                reply: Reply = await send(
                    model_pb2_grpc.ModelServiceStub(uplink.channel),
                    asking.terms.name_in(uplink.backend.tier),
                    timeout=max(context.deadline - asyncio.get_running_loop().time(), 0.001),
                    metadata=(
                        ("authorization", f"Bearer {token.value}"),
                        ("traceparent", traceparent),
                    ),
                )
                return reply
            except grpc.aio.AioRpcError as error:
                failure = fault_from_rpc_error(error)
                if failure.code is grpc.StatusCode.UNAUTHENTICATED:
                    # That is between the backend and this router, and none of the caller's affair.
                    self._tokens.was_refused(token)
                    failure = None
                elif failure.code is not grpc.StatusCode.UNAVAILABLE:
                    raise failure from error
        if failure is not None:
            raise failure
        verdict = routing.decisions.decide(asked, asking.terms).verdict
        if isinstance(verdict, values.Refuse):
            raise refused(verdict, about.model)
        raise refused(
            values.Refuse(values.Refusal.NO_BACKEND, "no backend can answer now"), about.model
        )

    def _why_it_stays(self, asking: Asking, context: CallContext, *, limited: bool) -> Fault | None:
        """What to say if only the cloud could take it and must not; None where it may.

        A call bears no mask and comes under the router's own name: the proxy could neither mask
        for the tenant nor charge whose it is.
        """
        if context.mask or self._routing.decisions.masks(asking.tenant):
            return kept_from_cloud(asking.name)
        return not_charged(asking.name) if limited else None
