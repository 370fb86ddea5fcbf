"""Carries ModelService on the wire for engine, proxy and router alike.

The generation RPCs pass serialised messages through: a chunk that a relay only
forwards is never decoded. What to answer is the `ModelHandler`'s business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from anabranch.v1 import errors_pb2, generation_pb2, model_pb2
from services.chassis.audit.requests import COUNT_TOKENS, EMBED, RequestAudit
from services.chassis.authn import Verifier
from services.chassis.caller_sampling import CallerSampling
from services.chassis.detached_sessions import ResumableSessions, ResumeLimits, session_lost
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.feedback_calls import FeedbackCalls
from services.chassis.http2.server_call import ServerCall
from services.chassis.model_handler import CallContext, ModelHandler
from services.chassis.model_patterns import allows
from services.chassis.model_session import HandOver, Session
from services.chassis.model_streams import ActiveRequests, StreamLimits
from services.chassis.plain_calls import PlainCalls, metadata_value
from services.chassis.principal import current_principal
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.metered import metered_reply, tokens_of
from services.chassis.session_handover import hand_over
from services.chassis.session_wire import GrpcWire, WireLost
from services.chassis.validation import generate_violations
from services.chassis.workers import Worker

SERVICE_NAME = "anabranch.v1.ModelService"
_Reply = TypeVar("_Reply")
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_EMBED_INPUTS = 256


class ModelService:
    """The wire side of ModelService around one handler."""

    def __init__(
        self,
        handler: ModelHandler,
        verifier: Verifier,
        *,
        limits: StreamLimits | None = None,
        remember_ids: int = 0,
        resume: ResumeLimits | None = None,
        worker: Worker | None = None,
        audit: RequestAudit | None = None,
        quotas: QuotaGate | None = None,
        sampling: CallerSampling | None = None,
    ) -> None:
        self._handler = handler
        self._quotas = quotas
        self._audit = audit
        self._verifier = verifier
        self._worker = worker
        place = None if worker is None else (worker.index, worker.number)
        self.resumable = ResumableSessions(resume or ResumeLimits(), place)
        self.requests = ActiveRequests(
            handler,
            limits or StreamLimits(),
            remember_ids=remember_ids,
            audit=audit,
            quotas=quotas,
            sampling=sampling,
        )
        self._sampling = sampling
        self._plain = PlainCalls(self.requests)
        self._feedback = FeedbackCalls(handler, worker)
        self._sessions: set[Session] = set()
        self._retiring: tuple[float, str] | None = None

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                # No deserialiser: a malformed message gets our own status, not the runtime's.
                "Generate": grpc.unary_unary_rpc_method_handler(
                    self._plain.generate,
                    response_serializer=generation_pb2.GenerateResponse.SerializeToString,
                ),
                "StreamGenerate": grpc.unary_stream_rpc_method_handler(self._plain.stream_generate),
                "Session": grpc.stream_stream_rpc_method_handler(self._session),
                "Embed": grpc.unary_unary_rpc_method_handler(
                    self._embed,
                    model_pb2.EmbedRequest.FromString,
                    model_pb2.EmbedResponse.SerializeToString,
                ),
                "CountTokens": grpc.unary_unary_rpc_method_handler(
                    self._count_tokens,
                    model_pb2.CountTokensRequest.FromString,
                    model_pb2.CountTokensResponse.SerializeToString,
                ),
                "ListModels": grpc.unary_unary_rpc_method_handler(
                    self._list_models,
                    model_pb2.ListModelsRequest.FromString,
                    model_pb2.ListModelsResponse.SerializeToString,
                ),
                "Feedback": _feedback_method(self._feedback.of_caller),
            },
        )

    def sibling_handler(self) -> grpc.GenericRpcHandler:
        """The RPCs for siblings: they bring the callers of sessions that are held here, and of
        answers that were given here."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Session": grpc.stream_stream_rpc_method_handler(self._session_from_sibling),
                "Feedback": _feedback_method(self._feedback.of_sibling),
            },
        )

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing is held for a caller who may come back for it."""
        return not len(self.requests) and not self.resumable.hold_answers

    def open_for_work(self) -> None:
        """The model is loaded: requests are taken from now on."""
        self.requests.loading = False

    def retire(self, time_left: float, reason: str) -> None:
        """Tells every session, present or to come, to leave; plain RPCs are still taken."""
        self._retiring = (time_left, reason)
        for session in (*self._sessions, *self.resumable):
            session.go_away(time_left, reason)

    def go_away(self, time_left: float, reason: str) -> None:
        """Takes nothing new and tells every session; running requests go on.

        A session without a connection ends: its caller can reach this process no more.
        """
        self.requests.draining = True
        self.resumable.shut()
        for session in self._sessions:
            session.go_away(time_left, reason)

    async def _session(self, _: Any, call: ServerCall) -> None:
        wire = GrpcWire(call, self.requests.limits.write_stall)
        try:
            await self._serve_session(wire, metadata_value(call, "authorization"))
        except HandOver as held:
            assert self._worker is not None, "there are no siblings"
            authorization = metadata_value(call, "authorization")
            try:
                await hand_over(self._worker.siblings, held, wire, authorization)
            except WireLost as lost:
                raise lost.fault from lost

    async def _session_from_sibling(self, _: Any, call: ServerCall) -> None:
        try:
            wire = GrpcWire(call, self.requests.limits.write_stall)
            await self._serve_session(wire, metadata_value(call, "authorization"))
        except HandOver as held:
            raise session_lost() from held  # no caller goes round

    async def _serve_session(self, wire: GrpcWire, authorization: str) -> None:
        self.requests.check_open()
        session = Session(
            self._handler,
            self.requests,
            current_principal(),
            self._verifier,
            wire,
            self.resumable,
            authorization=authorization,
        )
        self._sessions.add(session)
        if self._retiring is not None:
            session.go_away_once_open(*self._retiring)
        try:
            await session.serve()
        finally:
            self._sessions.discard(session)

    async def _embed(
        self, request: model_pb2.EmbedRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.EmbedResponse:
        self.requests.check_open()
        faults = []
        if not request.model:
            faults.append(Violation("model", "is required; ListModels lists the names"))
        if not 1 <= len(request.inputs) <= _MAX_EMBED_INPUTS:
            faults.append(Violation("inputs", f"must be 1 to {_MAX_EMBED_INPUTS} texts"))
        elif not all(request.inputs):
            faults.append(Violation("inputs", "must not be empty texts"))
        if request.HasField("dimensions") and request.dimensions < 1:
            faults.append(Violation("dimensions", "must be 1 or more"))
        if faults:
            raise invalid(faults)
        current_principal().check_model(request.model)
        call = self._call_context(context)
        size = sum(len(text.encode()) for text in request.inputs)
        return await self._audited(
            EMBED,
            request.model,
            lambda: metered_reply(
                self._quotas,
                call.caller,
                request.model,
                tokens_of(size),
                lambda: self._handler.embed(request, call),
                _read_tokens,
            ),
        )

    async def _count_tokens(
        self, request: model_pb2.CountTokensRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.CountTokensResponse:
        self.requests.check_open()
        faults = []
        if not request.model:
            faults.append(Violation("model", "is required; ListModels lists the names"))
        elif request.request.model not in ("", request.model):
            faults.append(Violation("request.model", "must be empty or equal to model"))
        measured = generation_pb2.GenerateRequest()
        measured.CopyFrom(request.request)
        measured.model = measured.model or request.model or "-"
        faults += [
            Violation("request." + v.field, v.description) for v in generate_violations(measured)
        ]
        if faults:
            raise invalid(faults)
        current_principal().check_model(request.model)
        call = self._call_context(context)
        return await self._audited(
            COUNT_TOKENS,
            request.model,
            lambda: metered_reply(
                self._quotas,
                call.caller,
                request.model,
                0,  # nothing is generated, nor read by a model
                lambda: self._handler.count_tokens(request, call),
                lambda _: None,
            ),
        )

    async def _audited(
        self, action: str, model: str, answer: Callable[[], Awaitable[_Reply]]
    ) -> _Reply:
        """The answer, which the audit trail tells of if there is one."""
        if self._audit is None:
            return await answer()
        return await self._audit.watched_call(action, model, current_principal(), answer)

    async def _list_models(
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        listed = [m for m in await self._handler.list_models() if _may_see(m.name)]
        models = sorted(listed, key=lambda model: model.name)
        after = _decode_page(request.page_token)
        if request.page_size < 0:
            raise invalid([Violation("page_size", "must not be negative")])
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rest = [model for model in models if model.name > after]
        response = model_pb2.ListModelsResponse(models=rest[:size])
        if len(rest) > size:
            response.next_page_token = _encode_page(rest[size - 1].name)
        return response

    def _call_context(self, context: grpc.aio.ServicerContext) -> CallContext:
        remaining = context.time_remaining()
        limit = self.requests.limits.default_timeout
        allowed = limit if remaining is None else min(limit, remaining)
        caller = current_principal()
        traceparent = metadata_value(context, "traceparent")
        if traceparent and self._sampling is not None:
            traceparent = self._sampling.taken(traceparent, caller)
        return CallContext(
            caller=caller,
            request_id="",
            deadline=asyncio.get_running_loop().time() + allowed,
            traceparent=traceparent,
        )


def _feedback_method(behaviour: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        model_pb2.FeedbackRequest.FromString,
        model_pb2.FeedbackResponse.SerializeToString,
    )


def _may_see(model: str) -> bool:
    """Whether the caller hears of a model: one that it may ask, or any if it looks after them."""
    principal = current_principal()
    looks_after = not principal.scopes.isdisjoint(("relay", "admin"))
    return looks_after or allows(principal.models, model)


def _read_tokens(reply: model_pb2.EmbedResponse) -> int | None:
    return reply.usage.prompt_tokens if reply.usage.source else None


def _encode_page(name: str) -> str:
    return base64.urlsafe_b64encode(b"m:" + name.encode()).decode()


def _decode_page(token: str) -> str:
    if not token:
        return ""
    try:
        decoded = base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, UnicodeError) as exc:
        raise _bad_page() from exc
    if not decoded.startswith("m:"):
        raise _bad_page()
    return decoded[2:]


def _bad_page() -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_INVALID_REQUEST,
        "the page_token is none that this service issued",
        violations=[Violation("page_token", "must be a next_page_token of this service")],
    )
