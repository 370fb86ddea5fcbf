"""One connection of a session as the session sees it: whole messages, both ways, as bytes.

The only place where a session meets its transport. What the messages mean is elsewhere.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import grpc

from services.chassis.caller_writes import CallerWrites, caller_left
from services.chassis.errors import Fault


class SessionWire(Protocol):
    """A connection. Its loss cancels the task that serves it, or is a WireLost."""

    async def receive(self) -> bytes | None:
        """The caller's next message; None when it has half-closed. Raises WireLost."""

    async def send(self, message: bytes) -> None:
        """Returns once another may be sent. Raises WireLost."""


class WireLost(Exception):
    """The caller takes nothing any more; `fault` says why, in case it still listens."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class GrpcWire:
    """The call of a grpc.aio server, used within a `with` block of the task that serves it.

    A write that is not taken for `stall` seconds is its end.
    """

    def __init__(self, context: grpc.aio.ServicerContext, stall: float) -> None:
        self._context = context
        self._writes = CallerWrites(context, stall=stall)

    def __enter__(self) -> Self:
        self._writes.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writes.__exit__(kind, error, traceback)

    async def receive(self) -> bytes | None:
        """The caller's next message; None when it has half-closed. Raises WireLost."""
        try:
            message = await self._context.read()
        except grpc.aio.InternalError as exc:
            raise WireLost(caller_left()) from exc
        return None if message is grpc.aio.EOF else message

    async def send(self, message: bytes) -> None:
        """Returns once the transport has taken the message. Raises WireLost."""
        try:
            await self._writes.write(message)
        except Fault as fault:
            raise WireLost(fault) from fault
