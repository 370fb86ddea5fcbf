"""The fake engine's steps: in each, every running answer gets one token.

Knows nothing of requests, contracts and wires: an answer is stepped, or awaits its steps. It uses
the standard library alone, so that a worker in another environment steps in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

LONGEST = 4096
"""Tokens of an answer at most."""


class Running(Protocol):
    """An answer in progress."""

    def step(self) -> bool:
        """Gives it one more token; whether that was its last."""

    def cut(self) -> None:
        """Ends it before its last token."""


class Steps:
    """The steps of one model: while anything runs, each step gives every answer a token."""

    def __init__(self, pace_ms: int) -> None:
        self._seconds = pace_ms / 1000
        self._answers: dict[Running, None] = {}
        self._rpcs = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._made = 0

    @property
    def running(self) -> int:
        """Answers in progress."""
        return len(self._answers) + self._rpcs

    def add(self, answer: Running) -> Callable[[], None]:
        """Runs an answer from the next step on. What it returns cuts it off, once."""
        self._answers[answer] = None
        self._work.set()

        def cancel() -> None:
            if answer in self._answers:
                del self._answers[answer]
                answer.cut()

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
        for answer in tuple(self._answers):
            if answer.step():
                self._answers.pop(answer, None)
