"""The fake engine's steps: in each, every running answer gets one ready-made token.

Knows nothing of requests and of the wire: tokens go to an `Outlet`, or to whoever awaits them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from anabranch.v1 import generation_pb2 as pb
from services.chassis.model_handler import Cancel, Outlet

LONGEST = 4096
"""Tokens of an answer at most."""

CHUNKS = tuple(
    pb.GenerateChunk(first_token=at, text=" river", token_ids=[1000 + at]).SerializeToString()
    for at in range(LONGEST)
)


def first_chunk(request_id: str) -> bytes:
    """The first token, which carries the request's id."""
    return pb.GenerateChunk(
        text=" river", token_ids=[1000], request_id=request_id
    ).SerializeToString()


def last_chunk(tokens: int, reason: pb.FinishReason) -> bytes:
    """The last token, with the usage."""
    return pb.GenerateChunk(
        first_token=max(tokens - 1, 0),
        text=" sea",
        token_ids=[999],
        finish_reason=reason,
        usage=pb.Usage(prompt_tokens=16, completion_tokens=tokens, source=pb.Usage.SOURCE_PROVIDER),
    ).SerializeToString()


class Answer:
    """One running answer of a session."""

    __slots__ = ("at", "outlet", "request_id", "tokens")

    def __init__(self, outlet: Outlet, request_id: str, tokens: int) -> None:
        self.outlet = outlet
        self.request_id = request_id
        self.tokens = tokens
        self.at = 0

    def end(self, reason: pb.FinishReason) -> None:
        """Puts the last chunk."""
        self.outlet.chunk(last_chunk(self.at, reason), last=True, tokens=1)


class Steps:
    """The steps of one model: while anything runs, each step gives every answer a token."""

    def __init__(self, pace_ms: int) -> None:
        self._seconds = pace_ms / 1000
        self._answers: dict[Answer, None] = {}
        self._rpcs = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._made = 0

    @property
    def running(self) -> int:
        """Answers in progress."""
        return len(self._answers) + self._rpcs

    def add(self, answer: Answer) -> Cancel:
        """Runs an answer from the next step on."""
        self._answers[answer] = None
        self._work.set()

        def cancel() -> None:
            if answer in self._answers:
                del self._answers[answer]
                answer.end(pb.FINISH_REASON_CANCELLED)

        return cancel

    async def each(self, tokens: int) -> AsyncGenerator[int, None]:
        """The positions of a plain RPC's tokens, each once its step is made.

        An RPC that is late with its writes catches up: the model does not wait for it.
        """
        if not self._seconds:
            for at in range(tokens):
                yield at
            return
        self._rpcs += 1
        self._work.set()
        begun = self._made
        try:
            for at in range(tokens):
                while self._made - begun <= at:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
                yield at
        finally:
            self._rpcs -= 1

    async def run(self) -> None:
        """Makes the steps, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self.running:
                self._work.clear()
                await self._work.wait()
                # What comes right after a step joins the grid; after a pause it begins anew.
                if loop.time() - due > self._seconds:
                    due = loop.time()
            # A grid, so that late wake-ups do not add up.
            due = max(due + self._seconds, loop.time())
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._step()

    def _step(self) -> None:
        self._made += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        ended = []
        for answer in self._answers:
            at = answer.at
            answer.at = at + 1
            if at + 1 >= answer.tokens:
                ended.append(answer)
            elif at:
                answer.outlet.chunk(CHUNKS[at], last=False, tokens=1)
            else:
                answer.outlet.chunk(first_chunk(answer.request_id), last=False, tokens=1)
        for answer in ended:
            del self._answers[answer]
            answer.end(pb.FINISH_REASON_LENGTH)
