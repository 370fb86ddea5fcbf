"""The lanes in which requests are encoded, so that quick ones need not wait for slow ones.

What encoding one means is engine_call.py's; which requests there is room for, handler.py's.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.engine import Engine
from services.local_engine.engine_call import EngineCall

LONG_REQUEST_BYTES = 4096
"""Serialised requests above this are encoded apart."""

_SHORT, _LONG, _APART = range(3)


class Lanes:
    """Requests on their way to the engine. `run` must be running for each of COUNT numbers.

    Short ones and long ones go in order of arrival, each among their own. Those whose form must
    be judged first, or whose images may take seconds to get, do not wait for each other here: forms
    and images have queues of their own, fair to tenants.
    """

    COUNT = 3

    def __init__(self) -> None:
        self._queues = tuple(asyncio.Queue[EngineCall]() for _ in range(self.COUNT))
        self._apart: set[asyncio.Task[None]] = set()
        self._of_engine: Counter[Engine] = Counter()
        self.closed = False
        """Whether a lane has ended: what comes now would never be encoded."""

    def __len__(self) -> int:
        """Requests that are not with the engine yet."""
        return sum(queue.qsize() for queue in self._queues) + len(self._apart)

    def waiting(self, engine: Engine) -> int:
        """As len(), of those that are for one engine."""
        return self._of_engine[engine]

    def put(
        self, call: EngineCall, request: pb.GenerateRequest, *, images: bool, form: bool
    ) -> None:
        """Takes a request; `form` says that its answer's form, if it is to have one, is judged."""
        lane = _LONG if request.ByteSize() > LONG_REQUEST_BYTES else _SHORT
        if form or images:
            lane = _APART
        self._of_engine[call.engine] += 1
        self._queues[lane].put_nowait(call)

    async def run(self, number: int) -> None:
        """Encodes and submits the requests of a lane, until cancelled.

        What it has not submitted by then fails: no drain waits for what nobody encodes.
        """
        queue = self._queues[number]
        call: EngineCall | None = None
        try:
            if number == _APART:
                await self._start_each(queue)
            while True:
                call = await queue.get()
                self._taken(call)
                await call.start()
        finally:
            self.closed = True
            left = [] if call is None else [call]
            while not queue.empty():
                left.append(queue.get_nowait())
            for call in left:
                call.not_submitted("the engine takes no more work")

    async def _start_each(self, queue: asyncio.Queue[EngineCall]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                call = await queue.get()
                task = group.create_task(_start(call), name="apart")
                self._apart.add(task)
                task.add_done_callback(self._apart.discard)
                task.add_done_callback(functools.partial(self._taken, call))

    def _taken(self, call: EngineCall, _: object = None) -> None:
        """It waits here no longer; an engine that has nothing here is not remembered."""
        self._of_engine[call.engine] -= 1
        if not self._of_engine[call.engine]:
            del self._of_engine[call.engine]


async def _start(call: EngineCall) -> None:
    try:
        await call.start()
    finally:
        call.not_submitted("the engine takes no more work")
