"""A gRPC server on the event loop: listeners, interceptors, handlers, an orderly stop.

Takes what grpc.aio's server takes: generic handlers, generated servicers, interceptors.
HTTP/2 itself is in server_connection.py, what a handler sees in server_call.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.chassis.http2 import headers
from services.chassis.http2.connection import TransportLimits
from services.chassis.http2.frames import Code
from services.chassis.http2.messages import Budget
from services.chassis.http2.server_call import ServerCall
from services.chassis.http2.server_connection import ServerConnection

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_UNFINISHED_BYTES = 128 * 1024 * 1024
_AGE_SPREAD = 0.1
_LOOK_EVERY_S = 0.01

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


@dataclass(frozen=True, slots=True)
class CallDetails(grpc.HandlerCallDetails):  # type: ignore[misc]
    """What an interceptor knows of a call."""

    method: str
    invocation_metadata: headers.Metadata = field(repr=False)


class Server:
    """Serves until stopped. The loop it is made in is the loop it runs in."""

    def __init__(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        limits: TransportLimits,
        max_calls: int,
        connection_age: float | None = None,
    ) -> None:
        self._limits = limits
        self._max_calls = max_calls
        self._connection_age = connection_age
        self._interceptors = tuple(interceptors)
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[ServerConnection] = set()
        self._calls: set[asyncio.Task[None]] = set()
        # Without those whose caller has left: their handlers end in a turn of the loop, and a
        # thousand of them, reset in one read, must not keep a proper caller out.
        self._open = 0
        self._budget = Budget(_UNFINISHED_BYTES)
        self._stopping = False

    # Composition, as grpc.aio's server has it

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Adds services. Before `start`."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Generated code announces here what it also adds as generic handlers."""

    async def listen(self, address: str, *, reuse_port: bool = False) -> int:
        """Binds host:port or unix:path and returns the port (0 for a path).

        Connections are accepted from `start` on. An empty host and "[::]" mean every
        address of either family. Raises OSError when the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            self._listeners.append(
                await loop.create_unix_server(self._connected, path, start_serving=False)
            )
            return 0
        bound = _bound(address, reuse_port=reuse_port)
        for one in bound:
            self._listeners.append(
                await loop.create_server(
                    self._connected, sock=one, backlog=_BACKLOG, start_serving=False
                )
            )
        return int(bound[0].getsockname()[1])

    async def start(self) -> None:
        """Accepts connections on every address that was bound."""
        for listener in self._listeners:
            await listener.start_serving()

    def close_listeners(self) -> None:
        """Accepts no more connections; those that are open go on."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def send_away(self, why: str) -> None:
        """Tells every caller to open its next calls on another connection."""
        for connection in tuple(self._connections):
            connection.send_away(why)

    async def stop(self, grace: float | None) -> None:
        """Stops accepting, waits up to `grace` seconds for calls, then cancels what is left."""
        self._stopping = True
        self.close_listeners()
        for connection in tuple(self._connections):
            connection.refuse_new("the server is shutting down")
        await self._idle(grace or 0.0)
        for connection in tuple(self._connections):
            for call in tuple(connection.streams.values()):
                if isinstance(call, ServerCall):
                    call.finish(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
                    call.stop()
        mine = asyncio.current_task()
        rest = [task for task in self._calls if task is not mine]
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.gather(*rest, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.close(Code.NO_ERROR, "the server is shutting down")

    async def _idle(self, grace: float) -> None:
        """Returns when no call is open, its request on its way or its answer, or after `grace`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        while loop.time() < until and any(one.streams for one in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY_S)  # streams end in the hot path, which tells nobody

    # From the connections

    def _connected(self) -> ServerConnection:
        return ServerConnection(self._limits, self, self._budget)

    def opened(self, connection: ServerConnection) -> None:
        """A peer has connected."""
        self._connections.add(connection)
        if self._stopping:
            connection.close(Code.NO_ERROR, "the server is shutting down")
        elif self._connection_age is not None:
            age = self._connection_age * random.uniform(1 - _AGE_SPREAD, 1 + _AGE_SPREAD)  # noqa: S311
            connection.leaves = connection.loop.call_later(age, connection.send_away, "max_age")

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    def prepare(self, call: ServerCall) -> Callable[[], None]:
        """Finds out how the call is to be begun; refuses it when there are too many."""
        if self._open >= self._max_calls:
            call.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are being served; try later"
            )
            return _nothing
        details = CallDetails(call.method, call.invocation_metadata())
        handler = self._find(details)
        call.request_streaming = handler is None or handler.request_streaming
        return functools.partial(self._begin, call, details)

    def _begin(self, call: ServerCall, details: CallDetails) -> None:
        # A context of its own: what a handler sets there is of its call alone.
        task = call.connection.loop.create_task(
            self._run(call, details), context=contextvars.Context()
        )
        call.task = task
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        self._open += 1
        call.add_done_callback(self._over)

    def _over(self, _: ServerCall) -> None:
        self._open -= 1

    def _find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        for handlers in self._handlers:
            found = handlers.service(details)
            if found is not None:
                return found
        return None

    async def _intercepted(
        self, details: grpc.HandlerCallDetails, index: int = 0
    ) -> grpc.RpcMethodHandler | None:
        if index == len(self._interceptors):
            return self._find(details)
        return await self._interceptors[index].intercept_service(
            functools.partial(self._intercepted, index=index + 1), details
        )

    async def _run(self, call: ServerCall, details: CallDetails) -> None:
        try:
            handler = await self._intercepted(details)
            if handler is None:
                call.finish(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
                return
            call.speaks(handler.request_deserializer, handler.response_serializer)
            await _handle(call, handler)
            call.finish()
        except grpc.aio.AbortError:
            return  # its status was sent by whoever raised it
        except asyncio.CancelledError:
            call.finish(grpc.StatusCode.CANCELLED, "the call was cancelled")
            raise
        except Exception:  # noqa: BLE001 - the edge: a status in any case
            # The guard turns what services raise into statuses; this is what it did not see.
            _log.exception("a handler failed", extra={"method": call.method})
            call.finish(grpc.StatusCode.UNKNOWN, "the handler failed")


async def _handle(call: ServerCall, handler: grpc.RpcMethodHandler) -> None:
    """Runs a handler of whichever kind."""
    behaviour = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    request: Any = call if handler.request_streaming else await call.read()
    answer = behaviour(request, call)
    if inspect.isasyncgen(answer):
        try:
            async for message in answer:
                await call.write(message)
        finally:
            await answer.aclose()
        return
    message = await answer
    if not handler.response_streaming:
        call.send(message if (write := handler.response_serializer) is None else write(message))


def _nothing() -> None:
    """The beginning of a call that is refused."""


def _bound(address: str, *, reuse_port: bool) -> list[socket.socket]:
    """Sockets that are bound but do not listen."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise OSError(f"{address!r} is not host:port")
    bare = host.removeprefix("[").removesuffix("]")
    dual = bare in ("", "*", "::") and socket.has_dualstack_ipv6()
    if bare in ("", "*"):
        bare = "::" if dual else "0.0.0.0"  # noqa: S104 - what an empty host asks for
    found = socket.getaddrinfo(bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    number = int(port)
    try:
        for family, kind, protocol, _, target in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
            one.setblocking(False)
            one.bind((target[0], number, *target[2:]))
            number = one.getsockname()[1]
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets
