"""The server's side of one connection: which calls there are, and how many there may be.

Refuses what HTTP/2 or gRPC forbids with the code that they name. How a call is handled is
for the server (server.py).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

import grpc

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.connection import Connection, TransportLimits
from services.chassis.http2.counts import Counts
from services.chassis.http2.frames import Code, ConnectionFault, StreamFault
from services.chassis.http2.listeners import dns_names
from services.chassis.http2.messages import ENCODINGS, Budget
from services.chassis.http2.server_call import ServerCall

# Streams that the peer may have opened before it hears of the settings, or that are resets on
# their way: refused, not punished. Beyond it each counts.
_REFUSAL_COST = 2.0
# A single request must be whole by then: nobody's place is held for longer by half of one.
_REQUEST_PATIENCE_S = 60.0
# No two connections of a process have the same, whichever server they are to.
_ids = itertools.count(1)
_NOT_GRPC = b"\x08\x03415" + headers.literal("content-type", "text/plain")


class Calls(Protocol):
    """What the server does with its connections' calls."""

    def opened(self, connection: ServerConnection) -> None:
        """A peer has connected."""

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""

    def prepare(self, call: ServerCall) -> Callable[[], None]:
        """What begins the call; at once, or when the request is whole if it is only one."""


class ServerConnection(Connection):
    """One caller's connection."""

    def __init__(self, limits: TransportLimits, calls: Calls, budget: Budget) -> None:
        super().__init__(limits)
        self._calls = calls
        self._budget = budget
        self._preface = h2.PREFACE
        self._leaving = False
        self._highest = 0
        self.id = next(_ids)
        self.counts = Counts()
        self.leaves: asyncio.TimerHandle | None = None

    def greeting(self) -> bytes:
        settings = h2.settings(
            {
                h2.MAX_CONCURRENT_STREAMS: self.limits.concurrent_streams,
                h2.INITIAL_WINDOW_SIZE: self.limits.stream_window,
                h2.MAX_HEADER_LIST_SIZE: self.limits.header_bytes,
            }
        )
        return settings + h2.window_update(0, self.limits.connection_window - h2.FIRST_WINDOW)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peer_identities = dns_names(transport.get_extra_info("peercert"))
        super().connection_made(transport)
        self._calls.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.leaves is not None:
            self.leaves.cancel()
        self._calls.lost(self)

    def take(self, data: bytes) -> None:
        if self._preface:
            expected = self._preface[: len(data)]
            if data[: len(expected)] != expected:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this is no HTTP/2 connection")
            self._preface = self._preface[len(expected) :]
            data = data[len(expected) :]
            if not data:
                return
        super().take(data)

    def is_idle(self, number: int) -> bool:
        return number % 2 == 0 or number > self._highest

    def on_headers(self, number: int, fields: headers.Fields | None, *, end: bool) -> None:
        if number % 2 == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "callers open streams of odd numbers")
        if number <= self._highest:
            self._trailers(number, end=end)
            return
        self._highest = number
        if self._leaving or len(self.streams) >= self.limits.concurrent_streams:
            # Never begun: the caller knows that it may ask elsewhere, or again.
            self.bear(_REFUSAL_COST)
            self.outgoing.raw(h2.reset(number, Code.REFUSED_STREAM))
            return
        self._last_taken = number
        self._open(number, fields, end=end)

    def _trailers(self, number: int, *, end: bool) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self.bear()  # of a stream that was reset: they may have been on their way
        elif stream.input_over:
            raise StreamFault(number, Code.STREAM_CLOSED, "headers after the end")
        elif not end:
            raise StreamFault(number, Code.PROTOCOL_ERROR, "headers twice")
        else:
            stream.received(b"", 0, end=True)

    def _open(self, number: int, fields: headers.Fields | None, *, end: bool) -> None:
        if fields is None:
            self._call(number, "", end=end).finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"metadata of more than {self.limits.header_bytes} bytes",
            )
            return
        if not headers.are_well_formed(fields):
            raise StreamFault(number, Code.PROTOCOL_ERROR, "malformed headers")
        named = dict(fields)
        method = named.get(":path", "")
        if not method or ":method" not in named or ":scheme" not in named:
            raise StreamFault(number, Code.PROTOCOL_ERROR, "headers of no request")
        if named[":method"] != "POST" or not headers.is_grpc(named.get("content-type", "")):
            self.bear()
            self.outgoing.raw(h2.headers(number, _NOT_GRPC, end_stream=True))
            if not end:
                self.outgoing.raw(h2.reset(number, Code.NO_ERROR))
            return
        self._begin(number, method, fields, named, end=end)

    def _begin(
        self,
        number: int,
        method: str,
        fields: headers.Fields,
        named: dict[str, str],
        *,
        end: bool,
    ) -> None:
        try:
            metadata = headers.metadata(fields)
        except ValueError as exc:
            self._call(number, method, end=end).finish(grpc.StatusCode.INTERNAL, str(exc))
            return
        spelled = named.get("grpc-timeout")
        timeout = None if spelled is None else headers.timeout(spelled)
        encoding = named.get("grpc-encoding", "identity")
        call = self._call(number, method, metadata, timeout, encoding, end=end)
        if spelled is not None and timeout is None:
            call.finish(grpc.StatusCode.INTERNAL, "a grpc-timeout that cannot be read")
        elif encoding not in ENCODINGS:
            call.finish(grpc.StatusCode.UNIMPLEMENTED, f"no such grpc-encoding: {encoding[:40]}")
        else:
            begin = self._calls.prepare(call)
            if call.over:
                return
            if call.request_streaming:
                begin()
            else:
                call.begin = begin
            if end:
                call.on_input_over()

    def _call(
        self,
        number: int,
        method: str,
        metadata: headers.Metadata = (),
        timeout: float | None = None,
        encoding: str = "identity",
        *,
        end: bool,
    ) -> ServerCall:
        call = ServerCall(
            self,
            number,
            method,
            metadata,
            timeout=timeout,
            encoding=encoding,
            budget=self._budget,
        )
        call.input_over = end
        self.add(call)
        self.counts.begin(call.opened_at)
        call.add_done_callback(self._call_over)
        return call

    def _call_over(self, call: ServerCall) -> None:
        # As channelz has it: with a status, whichever, a stream has ended as it should.
        self.counts.end(well=call.code() is not None)

    def on_tick(self) -> None:
        late = self.loop.time() - _REQUEST_PATIENCE_S
        for call in tuple(self.streams.values()):
            if isinstance(call, ServerCall) and call.begin is not None and call.opened_at < late:
                call.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not arrive in time")

    def send_away(self, why: str) -> None:
        """Callers are to open no more calls here; those they have opened are still answered."""
        if not self.closed:
            self.outgoing.raw(h2.go_away(h2.WIDEST_WINDOW, Code.NO_ERROR, why))

    def refuse_new(self, why: str) -> None:
        """As `send_away`, and the calls on their way by now are refused as never begun."""
        if not self.closed and not self._leaving:
            self._leaving = True
            self.outgoing.raw(h2.go_away(self._last_taken, Code.NO_ERROR, why))
