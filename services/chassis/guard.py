"""What surrounds every RPC: access log, errors, authentication, size, load and deadline.

One server interceptor wraps each method's behaviour once. It knows nothing of
what the methods do, and it costs nothing per message of a stream.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from anabranch.v1 import errors_pb2
from services.chassis.access import Access, access_of
from services.chassis.errors import Fault, Violation, fault_of, invalid, reason_name, to_status
from services.chassis.origin import Origin
from services.chassis.principal import Address, Principal, set_current_caller
from services.chassis.trace_context import trace_id_of

_log = logging.getLogger("anabranch.access")

# Session is bounded by its requests' own deadlines; a health or reflection watch by nothing.
_UNBOUNDED = ("/Session", "/Watch", "/ServerReflectionInfo")
# Consul and Kubernetes ask every second: worth no line each.
_QUIET = "/grpc.health.v1.Health/"
_PROBE = "/grpc.health.v1.Health/Check"
# Streams that need no credential and never end have few places, of their own: whoever held many
# of them open would otherwise take the places of those who may call.
_MOST_PUBLIC_STREAMS = 100
# The name under which calls of methods that do not exist are logged and counted. What the caller
# wrote would make a metric's labels without bound.
_UNKNOWN_METHOD = "/unknown"


class Authenticator(Protocol):
    """Decides who calls."""

    async def __call__(
        self, access: Access | None, authorization: str, address: Address | None
    ) -> Principal | None:
        """The caller; None for a public method. Raises Fault."""


class Observer(Protocol):
    """Is told of each finished RPC."""

    def __call__(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Called once an RPC, after it ended."""


class OnRefusal(Protocol):
    """Is told of each RPC that failed."""

    def __call__(self, method: str, fault: Fault, peer: str) -> None:
        """Called once an RPC, before its caller hears of it."""


class _Unreadable:
    """Stands for a request that could not be read; the guard refuses it in place of the handler.

    An exception in a deserialiser would leave as the runtime's own INTERNAL, without details.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def too_large(size: int, limit: int) -> Fault:
    """A message beyond the limit."""
    return Fault(
        errors_pb2.ERROR_REASON_TOO_LARGE,
        f"the message has {size} bytes, more than the {limit} that are accepted",
        metadata={"size": str(size), "limit": str(limit)},
    )


Behaviour = Callable[[Any, grpc.aio.ServicerContext], Any]


class _Places:
    """A number of calls that may be served at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One place for the length of a block. Raises Fault OVERLOADED when there is none."""
        if self._taken >= self._limit:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{self._taken} calls are being served, which is the limit; "
                "carry many requests over one session",
                retry_after=0.5,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


async def _unknown(_: Any, __: grpc.aio.ServicerContext) -> None:
    raise Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, "there is no such method here")


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The interceptor of every Anabranch server.

    `max_seconds` bounds every RPC but the long-lived ones, whatever its caller set.
    Requests of more than `max_message_bytes`, and calls beyond `max_concurrent` at
    once, are refused with details; the transport's own limits lie above these.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        max_seconds: float,
        max_message_bytes: int,
        max_concurrent: int,
        origin: Origin,
        observer: Observer | None = None,
        on_refusal: OnRefusal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._origin = origin
        self._max_seconds = max_seconds
        self._max_message_bytes = max_message_bytes
        self._places = _Places(max_concurrent)
        self._public_streams = _Places(min(_MOST_PUBLIC_STREAMS, max_concurrent))
        self._observer = observer
        self._on_refusal = on_refusal
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Finds the method's handler and returns it wrapped; of a method that does not exist, one
        that refuses as every other refusal does."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            method, handler = _UNKNOWN_METHOD, grpc.stream_stream_rpc_method_handler(_unknown)
        credentials = [
            value
            for key, value in handler_call_details.invocation_metadata or ()
            if key == "authorization"
        ]
        # Of several none counts: whoever else looked at the call may have looked at another one.
        authorization = credentials[0] if len(credentials) == 1 else ""
        return self._wrapped(handler, method, authorization)

    def _wrapped(
        self, handler: grpc.RpcMethodHandler, method: str, authorization: str
    ) -> grpc.RpcMethodHandler:
        behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if inspect.isasyncgenfunction(behaviour):
            run = self._streaming(behaviour, method, authorization)
        else:
            run = self._single(behaviour, method, authorization)
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(handler.request_streaming, handler.response_streaming)]
        read = handler.request_deserializer
        if not handler.request_streaming:
            read = self._reader(read)
        return make(run, read, handler.response_serializer)

    def _reader(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        def read(raw: bytes) -> Any:
            if len(raw) > self._max_message_bytes:
                return _Unreadable(too_large(len(raw), self._max_message_bytes))
            if deserialize is None:
                return raw
            try:
                return deserialize(raw)
            except DecodeError:
                return _Unreadable(invalid([Violation("", "is not a message of this RPC")]))

        return read

    def _single(self, behaviour: Behaviour, method: str, authorization: str) -> Behaviour:
        async def run(request: Any, context: grpc.aio.ServicerContext) -> Any:
            began = self._clock()
            try:
                async with asyncio.timeout(self._limit(method)):
                    with self._counted(method):
                        await self._admit(method, authorization, request, context)
                        result = await behaviour(request, context)
            except BaseException as exc:
                await self._failed(exc, context, method, began)
                raise
            self._ended(context, method, grpc.StatusCode.OK, began)
            return result

        return run

    def _streaming(self, behaviour: Behaviour, method: str, authorization: str) -> Behaviour:
        async def run(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            began = self._clock()
            try:
                async with asyncio.timeout(self._limit(method)):
                    with self._counted(method):
                        await self._admit(method, authorization, request, context)
                        async for response in behaviour(request, context):
                            yield response
            except BaseException as exc:
                await self._failed(exc, context, method, began)
                raise
            self._ended(context, method, grpc.StatusCode.OK, began)

        return run

    def _limit(self, method: str) -> float | None:
        return None if method.endswith(_UNBOUNDED) else self._max_seconds

    def _counted(self, method: str) -> AbstractContextManager[None]:
        if method == _PROBE:
            return nullcontext()
        access = access_of(method)
        public = access is not None and access.public
        endless = public and self._limit(method) is None
        return (self._public_streams if endless else self._places).taken()

    async def _admit(
        self, method: str, authorization: str, request: Any, context: grpc.aio.ServicerContext
    ) -> None:
        access = Access() if method == _UNKNOWN_METHOD else access_of(method)
        address = self._origin.of(context)
        set_current_caller(await self._authenticator(access, authorization, address), address)
        if isinstance(request, _Unreadable):
            raise request.fault

    async def _failed(
        self, exc: BaseException, context: grpc.aio.ServicerContext, method: str, began: float
    ) -> None:
        """Ends the RPC with the status of what was raised; returns only to re-raise."""
        if isinstance(exc, asyncio.CancelledError | GeneratorExit):
            self._ended(context, method, grpc.StatusCode.CANCELLED, began)
            return
        if isinstance(exc, grpc.aio.AbortError):
            self._ended(context, method, context.code() or grpc.StatusCode.INTERNAL, began)
            return
        if not isinstance(exc, Exception):
            return
        fault = fault_of(exc)
        if self._on_refusal is not None:
            address = self._origin.of(context)
            self._on_refusal(method, fault, "" if address is None else str(address))
        self._ended(context, method, fault.code, began, fault)
        await context.abort_with_status(rpc_status.to_status(to_status(fault)))

    def _ended(
        self,
        context: grpc.aio.ServicerContext,
        method: str,
        code: grpc.StatusCode,
        began: float,
        fault: Fault | None = None,
    ) -> None:
        seconds = self._clock() - began
        if self._observer is not None:
            self._observer(method, code, seconds)
        if method.startswith(_QUIET):
            return
        fields: dict[str, object] = {
            "method": method,
            "code": code.name,
            "ms": round(seconds * 1000, 1),
            "peer": context.peer(),
        }
        if trace_id := _trace_id(context):
            fields["trace_id"] = trace_id
        if fault is not None:
            fields["reason"] = reason_name(fault.reason)
        _log.info("rpc", extra=fields)


def _trace_id(context: grpc.aio.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return trace_id_of(str(value))
    return ""
