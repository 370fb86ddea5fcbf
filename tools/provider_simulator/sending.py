"""Sends one answer, piece by piece at its pace, with the fault that spoils it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from aiohttp import web

from tools.provider_simulator.answers import Reply
from tools.provider_simulator.faults import Fault
from tools.provider_simulator.voices import Piece

_EARLY = ("error_after_200", "keepalive_only", "giant_line")


@dataclass(frozen=True)
class Manner:
    """How a body is sent, and what faults look like in it.

    `first_delay` and `delay` are in seconds, before the first and before each further piece of
    output. `failure` and `giant` are made only when they are needed.
    """

    headers: Mapping[str, str]
    first_delay: float
    delay: float
    greeting: bytes
    keepalive: bytes
    garbage: bytes
    failure: Callable[[], bytes]
    giant: Callable[[int], bytes]


def lengthened(reply: Reply, fault: Fault) -> Reply:
    """The reply, with as much text as a giant response has."""
    if fault.kind != "giant_response":
        return reply
    text = ("x" * 1000,) * max(int(fault.number("bytes", 2e6)) // 1000, 1)
    return replace(reply, answers=tuple(replace(a, text=text) for a in reply.answers))


class Sending:
    """One response on its way."""

    def __init__(self, request: web.Request, fault: Fault, manner: Manner) -> None:
        self._request = request
        self._fault = fault
        if fault.kind == "trickle":
            seconds = fault.number("seconds", 0.05)
            manner = replace(manner, first_delay=seconds, delay=seconds)
        self._manner = manner
        self._response = web.StreamResponse(headers=dict(manner.headers))
        self._output = 0

    async def send(self, pieces: Iterable[Piece]) -> web.StreamResponse:
        """Sends all pieces, or what the fault leaves of them."""
        await self._response.prepare(self._request)
        if self._fault.kind == "hang_after_headers":
            await asyncio.Event().wait()
        if self._manner.greeting:
            await self._response.write(self._manner.greeting)
        await self._spoil()
        for piece in pieces:
            if self._fault.kind == "cut_mid_event" and self._due(2):
                await self._response.write(piece.data[: len(piece.data) // 2])
                await self._cut()
            if piece.output:
                delay = self._manner.delay if self._output else self._manner.first_delay
                if delay:
                    await asyncio.sleep(delay)
            await self._response.write(piece.data)
            if piece.output:
                self._output += 1
                await self._spoil()
        await self._response.write_eof()
        return self._response

    def _due(self, default: int) -> bool:
        return self._output == int(self._fault.number("after", default))

    async def _spoil(self) -> None:
        """Faults that show after so many pieces of output."""
        kind = self._fault.kind
        if not self._due(0 if kind in _EARLY else 2):
            return
        if kind == "stall":
            await asyncio.Event().wait()
        elif kind in ("keepalive_only", "keepalive_stall"):
            while True:
                if self._manner.keepalive:
                    await self._response.write(self._manner.keepalive)
                await asyncio.sleep(self._fault.number("seconds", 0.02))
        elif kind == "cut":
            await self._cut()
        elif kind == "garbage":
            await self._response.write(self._manner.garbage)
        elif kind == "error_after_200":
            await self._response.write(self._manner.failure())
        elif kind == "giant_line":
            await self._response.write(self._manner.giant(int(self._fault.number("bytes", 2e6))))

    async def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
        raise ConnectionResetError
