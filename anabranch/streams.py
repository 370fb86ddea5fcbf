"""Answers that arrive in chunks: one class for `async for`, one for plain `for`.

Both start their request when entered and cancel it when left before the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

from anabranch.errors import AnabranchError
from anabranch.inflight import Inflight
from anabranch.loop_thread import LoopThread
from anabranch.transcript import Chunk, Transcript
from anabranch.types import Answer
from anabranch.v1 import generation_pb2

Start = Callable[[generation_pb2.GenerateRequest], Inflight]


class AnswerStream(Transcript):
    """An answer that arrives in chunks; `text`, `usage`, `receipt` and `answer` grow with it.

    `async with` starts the request, and cancels it when left before the end, by whatever way.
    Iterating raises the AnabranchError that ended the request, with what had arrived in its
    `partial`.
    """

    def __init__(self, start: Start, request: generation_pb2.GenerateRequest) -> None:
        super().__init__(request.request_id, max(1, request.sampling.n))
        self._start = start
        self._request = request
        self._inflight: Inflight | None = None
        self._waiting: deque[bytes] = deque()
        self._ended = False

    async def __aenter__(self) -> Self:
        if self._inflight is not None:
            raise RuntimeError("a stream can be entered only once")
        self._inflight = self._start(self._request)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancels the request if it still runs; chunks that wait unread are dropped."""
        if self._inflight is not None:
            self._inflight.abandon()
        self._waiting.clear()
        self._ended = True

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if not self._waiting:
            await self._receive()
            if self._ended:
                raise StopAsyncIteration
        return self.add(self._waiting.popleft())

    async def finish(self) -> Answer:
        """Reads to the end and returns the whole answer. Raises as iterating does."""
        while not self._ended:
            for raw in self._waiting:
                self.add(raw)
            self._waiting.clear()
            await self._receive()
        return self.answer

    async def _receive(self) -> None:
        """Waits for more; sets `_ended` where there is none."""
        if self._inflight is None:
            raise RuntimeError("use `async with client.stream(…) as stream:`")
        if self._ended:
            return
        try:
            self._waiting.extend(await self._inflight.take())
        except AnabranchError as error:
            self._ended = True
            error.partial = self.answer
            raise
        if not self._waiting:
            self._ended = True
            self.verify()


class BlockingAnswerStream(Transcript):
    """AnswerStream for plain code: `with` and `for`. Belongs to one thread."""

    def __init__(
        self, loop: LoopThread, start: Start, request: generation_pb2.GenerateRequest
    ) -> None:
        super().__init__(request.request_id, max(1, request.sampling.n))
        self._loop = loop
        self._start = start
        self._request = request
        self._inflight: Inflight | None = None
        self._waiting: deque[bytes] = deque()
        self._ended = False

    def __enter__(self) -> Self:
        if self._inflight is not None:
            raise RuntimeError("a stream can be entered only once")
        self._inflight = self._loop.run(self._begin())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancels the request if it still runs; chunks that wait unread are dropped."""
        if self._inflight is not None and not self._ended:
            self._loop.call(self._inflight.abandon)
        self._waiting.clear()
        self._ended = True

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if not self._waiting:
            self._receive()
            if self._ended:
                raise StopIteration
        return self.add(self._waiting.popleft())

    def finish(self) -> Answer:
        """Reads to the end and returns the whole answer. Raises as iterating does."""
        for _ in self:
            pass
        return self.answer

    def _receive(self) -> None:
        if self._inflight is None:
            raise RuntimeError("use `with client.stream(…) as stream:`")
        if self._ended:
            return
        try:
            # One crossing of the threads for all that has arrived, not one a chunk.
            self._waiting.extend(self._loop.run(self._inflight.take()))
        except AnabranchError as error:
            self._ended = True
            error.partial = self.answer
            raise
        if not self._waiting:
            self._ended = True
            self.verify()

    async def _begin(self) -> Inflight:
        return self._start(self._request)
