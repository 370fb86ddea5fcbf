"""One HTTP/2 connection of either side: frames to streams, limits, liveness. RFC 9113.

Which streams there are, and what headers mean, is for the two sides (server_connection.py,
client.py) to say; what is sent when, for outgoing.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from services.chassis.http2 import frames as h2
from services.chassis.http2.abuse import Patience
from services.chassis.http2.frames import Code, ConnectionFault, StreamFault
from services.chassis.http2.headers import Fields, HeaderReader, HeadersTooLarge, spelled_peer
from services.chassis.http2.outgoing import Outgoing
from services.chassis.http2.stream import Stream
from services.chassis.turn import turn_of

_log = logging.getLogger(__name__)

_TOO_LARGE_COST = 16.0
# A call that was begun for nothing. To make us reset streams (CVE-2025-8671) comes to the same
# as to reset them, and no proper caller does it often.
_FAULT_COST = 4.0
_SETTING_COST = 0.1


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of one connection; bytes and seconds."""

    message_bytes: int
    header_bytes: int = 8 * 1024
    stream_window: int = 256 * 1024
    connection_window: int = 4 * 1024 * 1024
    concurrent_streams: int = 100
    # A half-open peer is noticed within the sum of the two.
    ping_every: float = 5.0
    ping_answer: float = 2.0
    # Peers that ping at the pace above must not be taken for a flood.
    ping_allowed_every: float = 4.0
    opening: float = 10.0


class Connection(asyncio.Protocol):
    """Base of the two sides. One event loop; not for use from threads."""

    def __init__(self, limits: TransportLimits, *, may_ping_often: bool = False) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self._turn = turn_of(self.loop)
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.peer = ""
        # DNS names in the peer's certificate, if it had to show one.
        self.peer_identities: tuple[str, ...] = ()
        self._frames = h2.FrameReader()
        self._headers = HeaderReader(limits.header_bytes)
        self._patience = Patience(
            self.loop.time, 0.0 if may_ping_often else limits.ping_allowed_every
        )
        self._greeted = False
        self._unfinished: tuple[int, int, bytearray] | None = None
        self.outgoing = Outgoing(self._patience.useful)
        self._receive_window = limits.connection_window
        self._uncredited = 0
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_taken = 0
        self.pings_sent = 0
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {}

    # What the two sides say

    def greeting(self) -> bytes:
        """What this side sends first."""
        raise NotImplementedError

    def on_headers(self, number: int, fields: Fields | None, *, end: bool) -> None:
        """A header block; None when it was beyond the limit. Raises the two faults."""
        raise NotImplementedError

    def on_go_away(self, last: int, code: int, why: str) -> None:
        """The peer takes no streams beyond `last`."""

    def on_tick(self) -> None:
        """Called every few seconds while the connection lives."""

    def why_lost(self) -> str:
        """What is said when the peer closes without a word."""
        return "the connection was lost"

    def is_idle(self, number: int) -> bool:
        """Whether a stream was never opened."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # They refer back to here until it is lost; a peer that fails its TLS handshake leaves none.
        self._handlers = {
            h2.DATA: self._data,
            h2.HEADERS: self._header_frame,
            h2.PRIORITY: self._priority,
            h2.RST_STREAM: self._reset_frame,
            h2.SETTINGS: self._settings,
            h2.PUSH_PROMISE: self._push_promise,
            h2.PING: self._ping,
            h2.GOAWAY: self._go_away_frame,
            h2.WINDOW_UPDATE: self._window_update,
        }
        # uvloop has transports of its own.
        self.outgoing.connected(cast(asyncio.Transport, transport))
        self.peer = spelled_peer(transport.get_extra_info("peername"))
        self.outgoing.raw(self.greeting())
        self._timer = self.loop.call_later(self.limits.opening, self._check_opening)

    def connection_lost(self, exc: Exception | None) -> None:
        self.outgoing.abort()
        self._over(Code.CANCEL, self.why_lost())
        self._handlers.clear()

    def pause_writing(self) -> None:
        self.outgoing.pause(True)

    def resume_writing(self) -> None:
        self.outgoing.pause(False)

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self._heard = True
        self._turn.begin()
        try:
            self.take(data)
            self.outgoing.check_read()
        except ConnectionFault as fault:
            self.close(fault.code, fault.why)
            return
        finally:
            self._turn.end()
        if self._uncredited * 2 >= self.limits.connection_window:
            self._receive_window += self._uncredited
            self.outgoing.raw(h2.window_update(0, self._uncredited))
            self._uncredited = 0

    # Reading

    def take(self, data: bytes) -> None:
        """Handles what arrived. Raises ConnectionFault."""
        for kind, flags, number, payload in self._frames.feed(data):
            if self.closed:
                return
            if self._unfinished is not None or kind == h2.CONTINUATION:
                self._continuation(kind, flags, number, payload)
                continue
            if not self._greeted:
                if kind != h2.SETTINGS or flags & h2.ACK:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "settings come first")
                self._greeted = True
                self._watch()
            handler = self._handlers.get(kind)
            if handler is None:
                self.bear()  # unknown kinds are ignored, as RFC 9113 asks
                continue
            try:
                handler(flags, number, payload)
            except StreamFault as fault:
                self.misled()
                self.reset(fault.stream, fault.code, fault.why)

    def answered(self) -> None:
        """A whole request was answered: the peer may say something to that."""
        self._patience.useful()

    def bear(self, cost: float = 1.0) -> None:
        """Counts a frame that led to nothing. Raises ConnectionFault for one too many."""
        if not self._patience.bears(cost):
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that lead to nothing")

    def misled(self) -> None:
        """Counts a call that was begun for nothing. Raises ConnectionFault for one too many."""
        self.bear(_FAULT_COST)

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more data than the window allows")
        self._uncredited += size
        if flags & h2.PADDED:
            payload = h2.unpadded(flags, payload)
        stream = self.streams.get(number)
        if stream is None:
            if number == 0 or self.is_idle(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "data on a stream that is not open")
            self.bear(0.1)  # of a stream that was reset: it may have been on its way
            return
        if not payload and not flags & h2.END_STREAM:
            self.bear()
        stream.received(payload, size, end=bool(flags & h2.END_STREAM))

    def _header_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "headers without a stream")
        payload = h2.unpadded(flags, payload)
        if flags & h2.HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "headers cut short")
            payload = payload[5:]
        if flags & h2.END_HEADERS:
            self._header_block(number, flags, payload)
        else:
            self._unfinished = (number, flags, bytearray(payload))

    def _continuation(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._unfinished is None or kind != h2.CONTINUATION or number != self._unfinished[0]:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block must be continued")
        number, first_flags, block = self._unfinished
        block += payload
        # Compressed is smaller; CVE-2024-27316 and its kin never end the block.
        if len(block) > 4 * self.limits.header_bytes:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "headers beyond every limit")
        if not payload:
            self.bear()
        if flags & h2.END_HEADERS:
            self._unfinished = None
            try:
                self._header_block(number, first_flags, bytes(block))
            except StreamFault as fault:
                self.misled()
                self.reset(fault.stream, fault.code, fault.why)

    def _header_block(self, number: int, flags: int, block: bytes) -> None:
        try:
            fields: Fields | None = self._headers.read(block)
        except HeadersTooLarge:
            # They take milliseconds to read, and a call that is refused costs its caller nothing.
            self.bear(_TOO_LARGE_COST)
            fields = None
        self.on_headers(number, fields, end=bool(flags & h2.END_STREAM))

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a priority without a stream")
        self.bear()
        if len(payload) != 5:
            raise StreamFault(number, Code.FRAME_SIZE_ERROR, "a priority of a wrong size")

    def _reset_frame(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        if number == 0 or self.is_idle(number):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a reset of a stream that never was")
        self.bear()
        stream = self.streams.get(number)
        if stream is not None:
            self.forget(stream)
            stream.broken(int.from_bytes(payload, "big"), "the peer reset the stream")

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "settings are of the connection")
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            self.bear()
            return
        self.bear(4.0 + _SETTING_COST * len(payload))
        found = h2.read_settings(payload)
        self.outgoing.raw(h2.pack(h2.SETTINGS, h2.ACK, 0))
        self.outgoing.settings(found, self.streams.values())

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "nothing is to be pushed")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "pings are of the connection")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a ping of a wrong size")
        if flags & h2.ACK:
            self.bear()
            return
        if not self._patience.bears_ping():
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too_many_pings")
        self.outgoing.raw(h2.pack(h2.PING, h2.ACK, 0, payload))

    def _go_away_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY is of the connection")
        if len(payload) < 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "GOAWAY cut short")
        self.bear()
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        code = int.from_bytes(payload[4:8], "big")
        self.on_go_away(last, code, payload[8:264].decode("utf-8", "replace"))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        size = int.from_bytes(payload, "big") & 0x7FFFFFFF
        self.bear(0.5)
        if number == 0:
            self.outgoing.widen(size)
            return
        stream = self.streams.get(number)
        if stream is None:
            if self.is_idle(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a window of no stream")
            return
        if size == 0:
            raise StreamFault(number, Code.PROTOCOL_ERROR, "a window that is widened by nothing")
        stream.window += size
        if stream.window > h2.WIDEST_WINDOW:
            raise StreamFault(number, Code.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        if stream.pending:
            self.outgoing.pump()

    # Streams

    def add(self, stream: Stream) -> None:
        """Opens a stream."""
        stream.window = self.outgoing.stream_window
        self.streams[stream.number] = stream

    def forget(self, stream: Stream) -> None:
        """A stream is over on both sides, or is of no interest any more."""
        self.streams.pop(stream.number, None)
        self.outgoing.forget(stream.number)

    def reset(self, number: int, code: Code, why: str) -> None:
        """Ends one stream at once, on both sides."""
        stream = self.streams.get(number)
        self.outgoing.raw(h2.reset(number, code))
        if stream is not None:
            self.forget(stream)
            stream.broken(code, why)

    @property
    def windows(self) -> tuple[int, int]:
        """Bytes of data that the peer may send now, and that it may be sent."""
        return self._receive_window, self.outgoing.window

    def about(self, what: str) -> Any:
        """What the transport knows of itself (`get_extra_info`); None when it is gone."""
        transport = self.outgoing.transport
        return None if transport is None else transport.get_extra_info(what)

    # Liveness and the end

    def _check_opening(self) -> None:
        if not self._greeted:
            self.close(Code.SETTINGS_TIMEOUT, "no settings came")

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.limits.ping_every, self._ask)

    def _ask(self) -> None:
        self.on_tick()
        self._heard = False
        self.pings_sent += 1
        self.outgoing.raw(h2.pack(h2.PING, 0, 0, b"anabranc"))
        self._timer = self.loop.call_later(self.limits.ping_answer, self._listen)

    def _listen(self) -> None:
        if self._heard:
            rest = self.limits.ping_every - self.limits.ping_answer
            self._timer = self.loop.call_later(max(rest, 0.0), self._ask)
        else:
            _log.info("a peer does not answer", extra={"peer": self.peer})
            self.outgoing.abort()
            self._over(Code.CANCEL, "the peer does not answer")

    def close(self, code: Code, why: str) -> None:
        """Says why and closes; streams that are open break."""
        if self.closed:
            return
        if code is not Code.NO_ERROR:
            _log.info(
                "closing a connection", extra={"peer": self.peer, "code": code.name, "cause": why}
            )
        last_words = h2.go_away(self._last_taken, code, why)
        self.outgoing.close(last_words, self.loop, linger=code is not Code.NO_ERROR)
        self._over(code, why)

    def _over(self, code: int, why: str) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.broken(code, why)
