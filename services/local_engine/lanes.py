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
from services.local_engine.images.reader import AT_ONCE

LONG_REQUEST_BYTES = 4096
"""Serialised requests above this are encoded apart."""

_SHORT, _LONG, _JUDGED, _PICTURED = range(4)


class Lanes:
    """Requests on their way to the engine. `run` must be running for each of COUNT numbers.

    Short ones and long ones go in order of arrival, each among their own. Those whose form must
    be judged first do not wait for each other's verdict, and of those with images, which may take
    seconds to get, AT_ONCE are worked on at once.
    """

    COUNT = _PICTURED + AT_ONCE

    def __init__(self) -> None:
        self._queues = tuple(asyncio.Queue[EngineCall]() for _ in range(4))
        self._being_judged: set[asyncio.Task[None]] = set()
        self._of_engine: Counter[Engine] = Counter()
        self.closed = False
        """Whether a lane has ended: what comes now would never be encoded."""

    def __len__(self) -> int:
        """Requests that are not with the engine yet, but for those with images in work."""
        return sum(queue.qsize() for queue in self._queues) + len(self._being_judged)

    def waiting(self, engine: Engine) -> int:
        """As len(), of those that are for one engine."""
        return self._of_engine[engine]

    @property
    def pictured(self) -> int:
        """Requests with images that wait to be worked on."""
        return self._queues[_PICTURED].qsize()

    def put(
        self, call: EngineCall, request: pb.GenerateRequest, *, images: bool, form: bool
    ) -> None:
        """Takes a request; `form` says that its answer's form, if it is to have one, is judged."""
        lane = _LONG if request.ByteSize() > LONG_REQUEST_BYTES else _SHORT
        if form:
            lane = _JUDGED
        self._of_engine[call.engine] += 1
        self._queues[_PICTURED if images else lane].put_nowait(call)

    async def run(self, number: int) -> None:
        """Encodes and submits the requests of a lane, until cancelled.

        What it has not submitted by then fails: no drain waits for what nobody encodes.
        """
        queue = self._queues[min(number, _PICTURED)]
        call: EngineCall | None = None
        try:
            if number == _JUDGED:
                await self._judge(queue)
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

    async def _judge(self, queue: asyncio.Queue[EngineCall]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                call = await queue.get()
                task = group.create_task(_start(call), name="judged")
                self._being_judged.add(task)
                task.add_done_callback(self._being_judged.discard)
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
