"""The caller's side: one connection, and streaming calls whose answers arrive by callback.

For the data plane's long calls. Everything else calls through grpc.aio, which resolves,
balances and retries; this does none of it.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
from grpc.aio import Metadata

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from services.chassis.http2.connection import Connection, TransportLimits
from services.chassis.http2.frames import Code, ConnectionFault, StreamFault
from services.chassis.http2.messages import (
    MessageReader,
    MessageTooLarge,
    MessageUnreadable,
    NoRoom,
)
from services.chassis.http2.stream import Stream

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# gRPC's mapping of answers that a proxy or another kind of server gave.
_OF_HTTP = {
    "400": grpc.StatusCode.INTERNAL,
    "401": grpc.StatusCode.UNAUTHENTICATED,
    "403": grpc.StatusCode.PERMISSION_DENIED,
    "404": grpc.StatusCode.UNIMPLEMENTED,
    **dict.fromkeys(("429", "502", "503", "504"), grpc.StatusCode.UNAVAILABLE),
}
_OF_RESET = {
    Code.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    Code.CANCEL: grpc.StatusCode.CANCELLED,
    Code.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_USER_AGENT = "anabranch"
_HANDSHAKE_S = 5.0
_TLS_GOODBYE_S = 2.0


def _status(code: grpc.StatusCode, details: str, trailing: headers.Metadata = ()) -> Any:
    return grpc.aio.AioRpcError(code, Metadata(), Metadata(*trailing), details)


class ClientCall(Stream):
    """A streaming call. Messages arrive at the callback, in the loop's own turn.

    `ended` is done when the call is over: with None for OK, else with an
    AioRpcError (which it returns, and does not raise).
    """

    def __init__(
        self, connection: ClientConnection, number: int, on_message: Callable[[bytes], None]
    ) -> None:
        super().__init__(connection, number)
        self.ended: asyncio.Future[grpc.aio.AioRpcError | None] = connection.loop.create_future()
        self.incoming = MessageReader(connection.limits.message_bytes)
        # May be replaced, when what arrives is of another kind from then on.
        self.on_message = on_message
        self._headed = False
        # Apart from the future, which whoever waits for it may cancel.
        self._over = False

    def send(self, message: bytes) -> None:
        """Sends now, or keeps until the windows take it. Raises AioRpcError when it is over."""
        if self._over:
            status = None if self.ended.cancelled() else self.ended.result()
            raise status or _status(grpc.StatusCode.CANCELLED, "the call is over")
        self.connection.outgoing.message(self, message)

    def half_close(self) -> None:
        """This side sends no more."""
        if not self._over:
            self.end_with(h2.pack(h2.DATA, h2.END_STREAM, self.number))

    def cancel(self) -> None:
        """Ends the call at once."""
        self.fail(grpc.StatusCode.CANCELLED, "cancelled by its caller")

    def on_messages(self, messages: list[bytes]) -> None:
        for message in messages:
            if self._over:
                return
            self.on_message(message)

    def on_input_over(self) -> None:
        # Trailers end a call; whatever else ends its input is no answer.
        self.fail(grpc.StatusCode.INTERNAL, "the stream ended without a status")

    def on_unreadable(self, exc: MessageTooLarge | MessageUnreadable | NoRoom) -> None:
        unreadable = isinstance(exc, MessageUnreadable)
        code = grpc.StatusCode.INTERNAL if unreadable else grpc.StatusCode.RESOURCE_EXHAUSTED
        self.fail(code, str(exc))

    def on_broken(self, code: int, why: str) -> None:
        known = _OF_RESET.get(cast(Code, code), grpc.StatusCode.INTERNAL)
        # Whatever ends the connection ends its calls as a lost server does.
        lost = self.connection.closed
        self.fail(grpc.StatusCode.UNAVAILABLE if lost else known, why)

    def on_headers(self, fields: headers.Fields | None, *, end: bool) -> None:
        """The answer's headers, or its trailers. Raises StreamFault."""
        if fields is None:
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "the answer's metadata is too large")
            return
        named = dict(fields)
        if not self._headed:
            self._headed = True
            http = named.get(":status", "")
            if http.startswith("1") and not end:
                self._headed = False
                return
            if http != "200":
                code = _OF_HTTP.get(http, grpc.StatusCode.UNKNOWN)
                self.fail(code, f"the server answered with HTTP status {http}")
                return
            if not headers.is_grpc(named.get("content-type", "")):
                self.fail(grpc.StatusCode.UNKNOWN, "the server's answer is not gRPC")
                return
            encoding = named.get("grpc-encoding", "identity")
            self.incoming = MessageReader(self.connection.limits.message_bytes, encoding)
        if end:
            self._trailers(fields, named)
        elif "grpc-status" in named:
            raise StreamFault(self.number, Code.PROTOCOL_ERROR, "trailers without an end")

    def _trailers(self, fields: headers.Fields, named: dict[str, str]) -> None:
        spelled = named.get("grpc-status", "")
        code = _CODES.get(int(spelled)) if spelled.isdecimal() and len(spelled) < 4 else None
        self.input_over = True
        if code is grpc.StatusCode.OK and self.incoming is not None and self.incoming.held:
            self.fail(grpc.StatusCode.INTERNAL, "the stream ended within a message")
        elif code is grpc.StatusCode.OK:
            self._end(None)
        else:
            message = headers.read_message(named.get("grpc-message", ""))
            try:
                trailing = headers.metadata(fields)
            except ValueError:
                trailing = ()
            self._end(_status(code or grpc.StatusCode.UNKNOWN, message, trailing))
        self.connection.forget(self)

    def fail(self, code: grpc.StatusCode, why: str) -> None:
        """Ends the call with a status of this side's own, and the stream if it is open."""
        if self._over:
            return
        self._end(_status(code, why))
        if self.number in self.connection.streams:
            self.connection.reset(self.number, Code.CANCEL, why)

    def _end(self, status: grpc.aio.AioRpcError | None) -> None:
        self._over = True
        self.stop_sending()
        if not self.ended.done():
            self.ended.set_result(status)


class ClientConnection(Connection):
    """A connection to one server."""

    def __init__(self, limits: TransportLimits) -> None:
        super().__init__(limits, may_ping_often=True)
        self._next = 1
        self._authority = ""
        self._scheme = "http"
        # The server takes no more calls here.
        self.leaving = False

    def greeting(self) -> bytes:
        settings = h2.settings(
            {
                h2.ENABLE_PUSH: 0,
                h2.INITIAL_WINDOW_SIZE: self.limits.stream_window,
                h2.MAX_HEADER_LIST_SIZE: self.limits.header_bytes,
            }
        )
        wider = h2.window_update(0, self.limits.connection_window - h2.FIRST_WINDOW)
        return h2.PREFACE + settings + wider

    def why_lost(self) -> str:
        if self._scheme == "https" and not self._greeted:
            # Under TLS 1.3 a server looks at the client's certificate after the client's handshake.
            return "the server closed the connection at once: it may not accept our certificate"
        return super().why_lost()

    def is_idle(self, number: int) -> bool:
        return number % 2 == 0 or number >= self._next

    def on_headers(self, number: int, fields: headers.Fields | None, *, end: bool) -> None:
        if self.is_idle(number):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "an answer to nothing")
        call = self.streams.get(number)
        if isinstance(call, ClientCall):
            call.on_headers(fields, end=end)
        else:
            self.bear()  # of a call that was cancelled: they may have been on their way

    def on_go_away(self, last: int, code: int, why: str) -> None:
        self.leaving = True
        for call in tuple(self.streams.values()):
            if call.number > last and isinstance(call, ClientCall):
                self.forget(call)
                call.fail(grpc.StatusCode.UNAVAILABLE, f"the server takes no more calls: {why}")

    def call(
        self,
        method: str,
        metadata: tuple[tuple[str, str | bytes], ...],
        on_message: Callable[[bytes], None],
    ) -> ClientCall:
        """Begins a streaming call of "/package.Service/Method".

        Raises ValueError for metadata that cannot be sent.
        """
        block = headers.block(
            (
                (":method", "POST"),
                (":scheme", self._scheme),
                (":path", method),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", _USER_AGENT),
                *metadata,
            )
        )
        call = ClientCall(self, self._next, on_message)
        if self.closed:
            call.fail(grpc.StatusCode.UNAVAILABLE, "the connection is closed")
            return call
        self._next += 2
        self.add(call)
        self.outgoing.raw(h2.headers(call.number, block, end_stream=False))
        return call

    def for_authority(self, authority: str, scheme: str = "http") -> ClientConnection:
        """Says whom the calls are addressed to."""
        self._authority = authority
        self._scheme = scheme
        return self


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a caller demands of the server: a certificate that `context` trusts and that holds
    `name` as a DNS name. Addresses do not matter."""

    context: ssl.SSLContext
    name: str


async def connect(
    target: str, limits: TransportLimits, tls: ServerIdentity | None = None
) -> ClientConnection:
    """Connects to "host:port", "dns:///host:port" or "unix:path".

    With `tls` the server must prove that identity, wherever it is. Raises OSError, also when
    the handshake fails; that the server refuses our certificate shows as a lost connection later.
    The caller closes it with `close(Code.NO_ERROR, …)`.
    """
    loop = asyncio.get_running_loop()
    target = target.removeprefix("dns:///")
    make = functools.partial(ClientConnection, limits)
    if target.startswith("unix:"):
        _, made = await loop.create_unix_connection(make, target.removeprefix("unix:"))
        return made.for_authority("localhost")
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        raise OSError(f"{target!r} is not host:port")
    bare = host.removeprefix("[").removesuffix("]")
    if tls is None:
        _, made = await loop.create_connection(make, bare, int(port))
        return made.for_authority(target)
    try:
        transport, made = await loop.create_connection(
            make,
            bare,
            int(port),
            ssl=tls.context,
            server_hostname=tls.name,
            ssl_handshake_timeout=_HANDSHAKE_S,
            ssl_shutdown_timeout=_TLS_GOODBYE_S,
        )
    except ssl.SSLCertVerificationError as refused:
        raise OSError(f"its certificate is not accepted: {refused.verify_message}") from refused
    secured = transport.get_extra_info("ssl_object")
    if secured.selected_alpn_protocol() != "h2":
        made.close(Code.NO_ERROR, "no HTTP/2 was agreed on")
        raise OSError("it does not speak HTTP/2 over TLS")
    return made.for_authority(tls.name, "https")
