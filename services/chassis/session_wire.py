"""One connection of a session as the session sees it: whole messages, both ways, as bytes.

The only place where a session meets its transport. What the messages mean is elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc

from services.chassis.caller_writes import caller_left, reads_too_slowly
from services.chassis.errors import Fault
from services.chassis.http2.server_call import ServerCall


class SessionWire(Protocol):
    """A connection. Its loss cancels the task that serves it, or is a WireLost."""

    async def receive(self) -> bytes | None:
        """The caller's next message; None when it has half-closed. Raises WireLost."""

    def send(self, message: bytes) -> bool:
        """Sends a message; false when no other may be sent before `drained`. Raises WireLost."""

    async def drained(self) -> None:
        """Returns once another message may be sent. Raises WireLost."""


class WireLost(Exception):
    """The caller takes nothing any more; `fault` says why, in case it still listens."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class GrpcWire:
    """The call of our own server (http2/server_call.py).

    A caller that takes nothing for `stall` seconds is given up.
    """

    def __init__(self, call: ServerCall, stall: float) -> None:
        self._call = call
        self._stall = stall

    async def receive(self) -> bytes | None:
        """The caller's next message; None when it has half-closed. Raises WireLost."""
        try:
            message = await self._call.read()
        except grpc.aio.InternalError as exc:
            raise WireLost(caller_left()) from exc
        return None if message is grpc.aio.EOF else message

    def send(self, message: bytes) -> bool:
        """Sends a message; false when no other may be sent before `drained`. Raises WireLost."""
        try:
            self._call.send(message)
        except grpc.aio.InternalError as exc:
            raise WireLost(caller_left()) from exc
        return not self._call.pending

    async def drained(self) -> None:
        """Returns once the transport has taken every message. Raises WireLost."""
        try:
            async with asyncio.timeout(self._stall):
                await self._call.drained()
        except TimeoutError as exc:
            raise WireLost(reads_too_slowly(f"nothing was read for {self._stall:g} s")) from exc
