"""Carries ModelService on the wire for engine, proxy and router alike.

The generation RPCs pass serialised messages through: a chunk that a relay only
forwards is never decoded. What to answer is the `ModelHandler`'s business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from anabranch.v1 import errors_pb2, generation_pb2, model_pb2, relay_pb2
from services.chassis.answers import AnswerBuilder
from services.chassis.authn import Verifier, current_principal
from services.chassis.caller_writes import reads_too_slowly, write_to_caller
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.model_handler import CallContext, ModelHandler
from services.chassis.model_session import Session
from services.chassis.model_streams import ActiveRequests, StreamLimits
from services.chassis.validation import generate_violations

SERVICE_NAME = "anabranch.v1.ModelService"
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_EMBED_INPUTS = 256


class _Queue:
    """The outlet of a plain RPC: up to `limit` bytes wait here until its own task sends them."""

    def __init__(self, limit: int) -> None:
        self._items: asyncio.Queue[tuple[bytes, bool] | Fault] = asyncio.Queue()
        self._room = limit

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._room -= len(raw)
        if self._room >= 0:
            self._items.put_nowait((raw, last))
            return
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put_nowait(reads_too_slowly("the answer came faster than it was read"))

    def fail(self, fault: Fault) -> None:
        self._items.put_nowait(fault)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            item = await self._items.get()
            if isinstance(item, Fault):
                raise item
            self._room += len(item[0])
            yield item[0]
            if item[1]:
                return


class ModelService:
    """The wire side of ModelService around one handler."""

    def __init__(
        self,
        handler: ModelHandler,
        verifier: Verifier,
        *,
        limits: StreamLimits | None = None,
        remember_ids: int = 0,
    ) -> None:
        self._handler = handler
        self._verifier = verifier
        self.requests = ActiveRequests(handler, limits or StreamLimits(), remember_ids=remember_ids)
        self._sessions: set[Session] = set()
        self._retiring: tuple[float, str] | None = None

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                # No deserialiser: a malformed message gets our own status, not the runtime's.
                "Generate": grpc.unary_unary_rpc_method_handler(
                    self._generate,
                    response_serializer=generation_pb2.GenerateResponse.SerializeToString,
                ),
                "StreamGenerate": grpc.unary_stream_rpc_method_handler(self._stream_generate),
                "Session": grpc.stream_stream_rpc_method_handler(
                    self._session,
                    response_serializer=relay_pb2.RelaySessionResponse.SerializeToString,
                ),
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
            },
        )

    def open_for_work(self) -> None:
        """The model is loaded: requests are taken from now on."""
        self.requests.loading = False

    def retire(self, time_left: float, reason: str) -> None:
        """Tells every session, present or to come, to leave; plain RPCs are still taken."""
        self._retiring = (time_left, reason)
        for session in self._sessions:
            session.go_away(time_left, reason)

    def go_away(self, time_left: float, reason: str) -> None:
        """Takes nothing new and tells every session; running requests go on."""
        self.requests.draining = True
        for session in self._sessions:
            session.go_away(time_left, reason)

    async def _generate(
        self, raw: bytes, context: grpc.aio.ServicerContext
    ) -> generation_pb2.GenerateResponse:
        answer = AnswerBuilder()
        async with aclosing(self._run(raw, context)) as chunks:
            async for chunk in chunks:
                answer.add(generation_pb2.GenerateChunk.FromString(chunk))
        return answer.response()

    async def _stream_generate(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        stall = self.requests.limits.write_stall
        async with aclosing(self._run(raw, context)) as chunks:
            async for chunk in chunks:
                await write_to_caller(context, chunk, stall=stall)

    async def _run(self, raw: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes]:
        queue = _Queue(self.requests.limits.session_buffer_bytes)
        traceparent = _metadata(context, "traceparent")
        request = self.requests.open(
            raw,
            queue,
            current_principal(),
            traceparent=traceparent,
            time_remaining=context.time_remaining(),
        )
        try:
            async for chunk in queue:
                yield chunk
        finally:
            request.abandon()

    async def _session(self, _: Any, context: grpc.aio.ServicerContext) -> None:
        self.requests.check_open()
        session = Session(
            self._handler, self.requests, current_principal(), self._verifier, context
        )
        self._sessions.add(session)
        if self._retiring is not None:
            session.go_away(*self._retiring)
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
        return await self._handler.embed(request, self._call_context(context))

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
        return await self._handler.count_tokens(request, self._call_context(context))

    async def _list_models(
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        models = sorted(await self._handler.list_models(), key=lambda model: model.name)
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
        return CallContext(
            caller=current_principal(),
            request_id="",
            deadline=asyncio.get_running_loop().time() + allowed,
            traceparent=_metadata(context, "traceparent"),
        )


def _metadata(context: grpc.aio.ServicerContext, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""


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
