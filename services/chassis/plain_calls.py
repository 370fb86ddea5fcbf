"""Generate and StreamGenerate: one request an RPC, over the same core as sessions.

Sessions are elsewhere; what to answer is the handler's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc

from anabranch.v1 import generation_pb2
from services.chassis.answers import AnswerBuilder
from services.chassis.authn import current_principal
from services.chassis.caller_writes import reads_too_slowly, write_to_caller
from services.chassis.errors import Fault
from services.chassis.model_streams import ActiveRequests


class _Queue:
    """The outlet of a plain RPC: up to `limit` bytes wait here until its own task sends them."""

    def __init__(self, limit: int) -> None:
        self._items: asyncio.Queue[tuple[bytes, bool] | Fault] = asyncio.Queue()
        self._room = limit

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._room -= len(raw)
        if self._room >= 0:
            self._items.put_nowait((raw, last))
            return
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put_nowait(reads_too_slowly("the answer came faster than it was read"))

    def fail(self, fault: Fault) -> None:
        self._items.put_nowait(fault)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            item = await self._items.get()
            if isinstance(item, Fault):
                raise item
            self._room += len(item[0])
            yield item[0]
            if item[1]:
                return


class PlainCalls:
    """The generation RPCs that carry one request each."""

    def __init__(self, requests: ActiveRequests) -> None:
        self._requests = requests

    async def generate(
        self, raw: bytes, context: grpc.aio.ServicerContext
    ) -> generation_pb2.GenerateResponse:
        """The whole answer. Raises Fault."""
        answer = AnswerBuilder()
        async with aclosing(self._run(raw, context)) as chunks:
            async for chunk in chunks:
                answer.add(generation_pb2.GenerateChunk.FromString(chunk))
        return answer.response()

    async def stream_generate(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        """Writes the answer to the caller as it comes. Raises Fault."""
        stall = self._requests.limits.write_stall
        async with aclosing(self._run(raw, context)) as chunks:
            async for chunk in chunks:
                await write_to_caller(context, chunk, stall=stall)

    async def _run(self, raw: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes]:
        queue = _Queue(self._requests.limits.session_buffer_bytes)
        traceparent = metadata_value(context, "traceparent")
        request = self._requests.open(
            raw,
            queue,
            current_principal(),
            traceparent=traceparent,
            time_remaining=context.time_remaining(),
        )
        try:
            async for chunk in queue:
                yield chunk
        finally:
            request.abandon()


def metadata_value(context: grpc.aio.ServicerContext, name: str) -> str:
    """What the caller sent under that name; empty for nothing."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""
