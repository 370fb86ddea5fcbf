"""Calls with one request and one answer over one kept connection, for what is asked every second.

A channel of grpc.aio keeps a pool of threads awake for some time after each call: a
process that polls through one is never quite idle. This neither balances nor retries, but for a
kept connection that turns out to be gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc.aio import AioRpcError, Metadata

from services.chassis.http2 import headers
from services.chassis.http2.client import ClientConnection, ServerIdentity, connect
from services.chassis.http2.connection import TransportLimits
from services.chassis.http2.frames import Code


def _error(code: grpc.StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details)


class SingleCalls:
    """Calls to one server. Connects when it is first asked; the owner closes it.

    `tls` gives the identity that the server must prove at each new connection; plain text without.
    """

    def __init__(
        self,
        target: str,
        limits: TransportLimits,
        tls: Callable[[], ServerIdentity] | None = None,
    ) -> None:
        self._target = target
        self._limits = limits
        self._tls = tls
        self._connection: ClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def ask(self, method: str, request: bytes, *, timeout: float) -> bytes:
        """The answer to a serialised request, within `timeout` s. Raises AioRpcError."""
        self._under_way += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout):
                return await self._ask(method, request, timeout)
        except TimeoutError as exc:
            why = f"{self._target} did not answer within {timeout:g} s"
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, why) from exc
        except OSError as exc:
            why = f"{self._target} cannot be reached: {exc.strerror or exc}"
            raise _error(grpc.StatusCode.UNAVAILABLE, why) from exc
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def close(self, grace: float = 0.0) -> None:
        """Closes the connection, after at most `grace` s for what is under way."""
        self._closed = True
        if grace and self._under_way:
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass  # what is left of it breaks now
        if self._connection is not None:
            self._connection.close(Code.NO_ERROR, "no more calls")

    async def _ask(self, method: str, request: bytes, timeout: float) -> bytes:
        while True:
            connection, fresh = await self._connected()
            answers: list[bytes] = []
            metadata = (("grpc-timeout", headers.spelled_timeout(timeout)),)
            call = connection.call(method, metadata, answers.append)
            try:
                if not call.ended.done():
                    call.send(request)
                    call.half_close()
                error = await asyncio.shield(call.ended)
            finally:
                call.cancel()
            if error is None and len(answers) == 1:
                return answers[0]
            if error is None:
                raise _error(grpc.StatusCode.INTERNAL, f"{len(answers)} answers to one request")
            gone = connection.closed or connection.leaving
            if fresh or not gone or answers or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise error

    async def _connected(self) -> tuple[ClientConnection, bool]:
        """A connection, and whether it was made just now."""
        async with self._connecting:
            kept = self._connection
            if kept is not None and not kept.closed and not kept.leaving:
                return kept, False
            if self._closed:
                raise OSError("its calls are over")
            self._connection = await connect(
                self._target, self._limits, self._tls() if self._tls else None
            )
            return self._connection, True
