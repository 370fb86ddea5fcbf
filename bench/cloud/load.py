"""Calls the cloud proxy over one session, as a router does, and counts what comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc, session_pb2

STREAMS_A_SESSION = 250
"""Just under what a session may hold."""

_LARGE = [("grpc.max_receive_message_length", 64 << 20)]


def request(model: str, chunks: int, pace: float, identity: str) -> pb.GenerateRequest:
    """A request that the mock answers with so many chunks."""
    text = f"chunks={chunks} pace={pace} id={identity}"
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.GenerateRequest(model=model, messages=[message])


class Session:
    """One session, open while the context is entered."""

    def __init__(self, target: str, authorization: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_LARGE)
        self._metadata = (("authorization", authorization),)
        self._call: Any = None
        self._ended: dict[int, asyncio.Future[None]] = {}
        self._first: dict[int, asyncio.Event] = {}
        self._next = 0
        self._writing = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self.chunks = 0
        self.errors: list[str] = []

    async def __aenter__(self) -> Self:
        self._call = model_pb2_grpc.ModelServiceStub(self._channel).Session(metadata=self._metadata)
        await self._call.write(session_pb2.SessionRequest())
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def answer(self, asked: pb.GenerateRequest) -> None:
        """Asks, and returns when the answer is over."""
        await (await self._start(asked))

    async def cancelled(self, asked: pb.GenerateRequest) -> float:
        """Asks, and cancels once output has come; the moment, of the machine's own clock."""
        ended = await self._start(asked)
        number = self._next
        await self._first[number].wait()
        frame = session_pb2.SessionRequestFrame(stream=number, cancel=session_pb2.SessionCancel())
        moment = time.monotonic()
        await self._write(frame)
        await ended
        return moment

    async def _start(self, asked: pb.GenerateRequest) -> asyncio.Future[None]:
        self._next += 1
        number = self._next
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended[number], self._first[number] = ended, asyncio.Event()
        frame = session_pb2.SessionRequestFrame(stream=number, start=asked)
        await self._write(frame)
        return ended

    async def _write(self, frame: session_pb2.SessionRequestFrame) -> None:
        # grpc.aio takes one write at a time.
        async with self._writing:
            await self._call.write(session_pb2.SessionRequest(frames=[frame]))

    async def _read(self) -> None:
        try:
            await self._take()
        except grpc.aio.AioRpcError as over:
            self.errors.append(over.details() or over.code().name)
        finally:
            # Nobody waits for a session that is over.
            for number in tuple(self._ended):
                self._end(number)

    async def _take(self) -> None:
        async for message in self._call:
            for frame in message.frames:
                first = self._first.get(frame.stream)
                if frame.HasField("error"):
                    self.errors.append(frame.error.message)
                    self._end(frame.stream)
                elif frame.chunk.finish_reason:
                    self._end(frame.stream)
                elif first is not None:
                    self.chunks += 1
                    first.set()

    def _end(self, number: int) -> None:
        ended = self._ended.pop(number, None)
        first = self._first.pop(number, None)
        if first is not None:
            first.set()
        if ended is not None and not ended.done():
            ended.set_result(None)


async def many(
    target: str, authorization: str, streams: int, make: Callable[[int], pb.GenerateRequest]
) -> list[str]:
    """So many requests at once over as many sessions as they need, until all are answered; the
    errors."""
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(Session(target, authorization))
            for _ in range(-(-streams // STREAMS_A_SESSION))
        ]
        await asyncio.gather(
            *(sessions[n // STREAMS_A_SESSION].answer(make(n)) for n in range(streams))
        )
        return [error for session in sessions for error in session.errors]
