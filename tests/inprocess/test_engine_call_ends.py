"""A request that ends before the engine has it: no further step is taken for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.local_engine.engine import Constraint, Job
from services.local_engine.simulation.engine import SimEngine, SimOptions
from tests.inprocess.test_local_engine import MODEL_NAME, engine, request
from tests.support.waiting import BOUND_S

FORM = pb.ResponseFormat(regex="[a-z]+")


class Gated(SimEngine):
    """Takes as long as it is told over a step before `submit`."""

    def __init__(self, step: str) -> None:
        super().__init__(SimOptions(name=MODEL_NAME))
        self.step = step
        self.entered, self.left, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.steps: list[str] = []
        self.jobs: list[Job] = []

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        await self._take("encode")
        return await super().encode(request)

    async def check_form(self, constraint: Constraint, tenant: str) -> None:
        await self._take("check_form")

    def submit(self, job: Job, *handlers: Any) -> None:
        self.jobs.append(job)
        super().submit(job, *handlers)

    async def _take(self, step: str) -> None:
        self.steps.append(step)
        if step != self.step or self.left.is_set():
            return
        self.entered.set()
        try:
            await self.go_on.wait()
        finally:
            self.left.set()


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(BOUND_S):
        await event.wait()


@pytest.mark.parametrize("way", ["stream", "session"])
async def test_a_call_that_is_cancelled_while_its_form_is_judged_never_begins(way):
    simulation = Gated("check_form")
    async with engine(simulation) as caller:
        wanted = request(response_format=FORM)
        if way == "stream":
            call = caller.stub.StreamGenerate(wanted, metadata=caller.metadata, timeout=BOUND_S)
            reading = asyncio.ensure_future(call.read())
            await wait(simulation.entered)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        else:
            call = caller.stub.Session(metadata=caller.metadata, timeout=BOUND_S)
            start = session_pb2.SessionRequestFrame(stream=1, start=wanted)
            await call.write(session_pb2.SessionRequest(frames=[start]))
            await wait(simulation.entered)
            end = session_pb2.SessionRequestFrame(stream=1, cancel=session_pb2.SessionCancel())
            await call.write(session_pb2.SessionRequest(frames=[end]))
            await call.done_writing()
            frames = [frame async for message in call for frame in message.frames]
            assert frames[-1].chunk.finish_reason == pb.FINISH_REASON_CANCELLED
        # Its judging ends with it, though nothing has let it go on.
        await wait(simulation.left)
        assert not simulation.go_on.is_set()
        await caller.generate()
    assert [job.sampling.constraint for job in simulation.jobs] == [None]


async def test_a_call_that_is_cancelled_while_it_is_encoded_never_begins():
    simulation = Gated("encode")
    async with engine(simulation) as caller:
        wanted = request(response_format=FORM)
        call = caller.stub.StreamGenerate(wanted, metadata=caller.metadata, timeout=BOUND_S)
        reading = asyncio.ensure_future(call.read())
        await wait(simulation.entered)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        ended = caller.stub.Session(metadata=caller.metadata, timeout=BOUND_S)
        await ended.done_writing()  # by its answer the cancel before it has arrived
        async for _ in ended:
            pass
        simulation.go_on.set()
        await wait(simulation.left)
        await caller.generate()
    assert simulation.steps == ["check_form", "encode", "encode"]
    assert [job.sampling.constraint for job in simulation.jobs] == [None]
