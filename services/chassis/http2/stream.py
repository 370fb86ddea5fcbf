"""One stream of a connection: what waits to be sent, and the messages that arrive.

Either side's calls build on it. It knows nothing of statuses and metadata.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.chassis.http2 import frames as h2
from services.chassis.http2.frames import Code, StreamFault
from services.chassis.http2.messages import (
    Budget,
    MessageReader,
    MessageTooLarge,
    MessageUnreadable,
    NoRoom,
)

if TYPE_CHECKING:
    from services.chassis.http2.connection import Connection


class Stream:
    """Base of the two sides' calls."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.window = 0
        self.pending = bytearray()
        self.incoming: MessageReader | None = None
        self.input_over = False
        # Bytes of whole messages, heads included, that were not asked for yet: as much less of
        # the window is given back.
        self.unread = 0
        self._tail: bytes | None = None
        self._flushed: asyncio.Future[None] | None = None
        self._room = connection.limits.stream_window
        self._uncredited = 0
        self._budget: Budget | None = None
        self._counted = 0

    # What a call does with it

    def on_messages(self, messages: list[bytes]) -> None:
        """Whole messages, in order."""
        raise NotImplementedError

    def on_input_over(self) -> None:
        """The peer sends no more."""
        raise NotImplementedError

    def on_broken(self, code: int, why: str) -> None:
        """The stream ended without its proper end."""
        raise NotImplementedError

    def on_unreadable(self, exc: MessageTooLarge | MessageUnreadable | NoRoom) -> None:
        """What arrives is no message, or too much of one; nothing more of it is looked at."""
        raise NotImplementedError

    # From the connection

    def received(self, payload: bytes, size: int, *, end: bool) -> None:
        """DATA of `size` flow-controlled bytes. Raises StreamFault."""
        if self.input_over:
            raise StreamFault(self.number, Code.STREAM_CLOSED, "data after the end")
        self._room -= size
        if self._room < 0:
            raise StreamFault(self.number, Code.FLOW_CONTROL_ERROR, "data beyond the window")
        self._uncredited += size
        self.input_over = end
        reader = self.incoming
        if reader is not None:
            try:
                messages = reader.feed(payload)
                if end and reader.held:
                    raise MessageUnreadable("the stream ended within a message")
                if messages:
                    self.on_messages(messages)
                if self._counted or reader.held + self.unread > Budget.FREE:
                    self._count()
            except (MessageTooLarge, MessageUnreadable, NoRoom) as exc:
                self.stop_reading()
                self.on_unreadable(exc)
                self.connection.misled()
                return
        if end:
            self.on_input_over()
        else:
            self.credit()

    def _count(self) -> None:
        """Keeps the budget's count of what is held here. Raises NoRoom, never for less."""
        if self._budget is None or self.incoming is None:
            return
        held = self.incoming.held + self.unread
        if not self._budget.take(held - self._counted):
            raise NoRoom("too many messages that are unfinished or unread are held here")
        self._counted = held

    def was_read(self, message: bytes) -> None:
        """A message was asked for."""
        self.unread -= len(message) + h2.MESSAGE_HEAD_BYTES
        if self._counted:
            self._count()
        self.credit()

    def stop_sending(self) -> None:
        """What waits is dropped, and so is whoever waits for it to leave."""
        self.pending.clear()
        self._tail = None
        self._release()

    def stop_reading(self) -> None:
        """Whatever still arrives is dropped, and what is unfinished of it freed."""
        self.incoming = None
        if self._budget is not None and self._counted:
            self._budget.take(-self._counted)
            self._counted = 0

    def credit(self) -> None:
        """Lets the peer send more, as far as what it sent was read."""
        window = self.connection.limits.stream_window
        free = self._uncredited - self.unread
        if free * 2 >= window and not self.input_over and self.number in self.connection.streams:
            self._room += free
            self._uncredited -= free
            self.connection.outgoing.raw(h2.window_update(self.number, free))

    def broken(self, code: int, why: str) -> None:
        """The stream ended from below."""
        self.stop_sending()
        self.stop_reading()
        self.on_broken(code, why)

    def flushed(self) -> None:
        """Everything that waited was sent."""
        if self._tail is not None:
            tail, self._tail = self._tail, None
            self.connection.outgoing.raw(tail)
            self.tail_sent()
        self._release()

    def tail_sent(self) -> None:
        """The last frame of this side has left."""

    # For the call

    def end_with(self, tail: bytes) -> None:
        """Sends the last frames of this side once all before them has been sent."""
        if self.pending:
            self._tail = tail
        else:
            self.connection.outgoing.raw(tail)
            self.tail_sent()

    async def drained(self) -> None:
        """Returns once nothing waits to be sent, or the stream has ended."""
        if self.pending:
            if self._flushed is None or self._flushed.done():
                self._flushed = self.connection.loop.create_future()
            # Others may wait for the same: one that is cancelled must not cancel them.
            await asyncio.shield(self._flushed)

    def _release(self) -> None:
        waiting, self._flushed = self._flushed, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
