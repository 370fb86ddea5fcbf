"""A gRPC server on the event loop: addresses, interceptors, handlers, an orderly stop.

Takes what grpc.aio's server takes: generic handlers, generated servicers, interceptors.
HTTP/2 itself is in server_connection.py, what a handler sees in server_call.py, accepting
connections in listeners.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.chassis.http2 import headers
from services.chassis.http2.connection import TransportLimits
from services.chassis.http2.counts import Counts
from services.chassis.http2.frames import Code
from services.chassis.http2.listeners import BACKLOG, ContextSource, TlsListener, bound
from services.chassis.http2.messages import Budget
from services.chassis.http2.server_call import ServerCall
from services.chassis.http2.server_connection import ServerConnection

_log = logging.getLogger(__name__)

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
        self._listeners: list[asyncio.AbstractServer | TlsListener] = []
        self._secured: list[TlsListener] = []
        self._connections: set[ServerConnection] = set()
        self._calls: set[asyncio.Task[None]] = set()
        # Without those whose caller has left: their handlers end in a turn of the loop, and a
        # thousand of them, reset in one read, must not keep a proper caller out.
        self._open = 0
        self.counts = Counts()
        self._budget = Budget(_UNFINISHED_BYTES)
        self._stopping = False

    # Composition, as grpc.aio's server has it

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Adds services. Before `start`."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Generated code announces here what it also adds as generic handlers."""

    async def listen(
        self, address: str, *, reuse_port: bool = False, tls: ContextSource | None = None
    ) -> int:
        """Binds host:port or unix:path and returns the port (0 for a path).

        Connections are accepted from `start` on. An empty host and "[::]" mean every
        address of either family. `tls` gives the context for each new connection; it is plain text
        without, and at a path. Raises OSError when the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            self._listeners.append(
                await loop.create_unix_server(self._connected, path, start_serving=False)
            )
            return 0
        sockets = bound(address, reuse_port=reuse_port)
        for one in sockets:
            if tls is not None:
                self._secured.append(TlsListener(self._connected, one, tls))
                self._listeners.append(self._secured[-1])
                continue
            self._listeners.append(
                await loop.create_server(
                    self._connected, sock=one, backlog=BACKLOG, start_serving=False
                )
            )
        return int(sockets[0].getsockname()[1])

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

    @property
    def open_connections(self) -> tuple[ServerConnection, ...]:
        """These connections, in no order."""
        return tuple(self._connections)

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
        for listener in self._secured:
            await listener.wait_closed()
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
        self.counts.begin(call.opened_at)
        call.add_done_callback(self._over)

    def _over(self, call: ServerCall) -> None:
        self._open -= 1
        self.counts.end(well=call.code() is grpc.StatusCode.OK)

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
