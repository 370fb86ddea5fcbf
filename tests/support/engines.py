"""Drives an Engine directly: jobs in, what came out as one value."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.prompt_blocks import prompt_blocks, prompt_bytes
from services.local_engine.engine import (
    Continuation,
    Delta,
    Engine,
    Finish,
    Job,
    SamplingSpec,
    TokenUsage,
)
from tests.support.waiting import BOUND_S

MODEL = Path(__file__).parents[2] / ".models" / "smollm2-135m-instruct"

_ids = itertools.count(1)


@dataclass
class Answer:
    """Everything that one job emitted."""

    deltas: list[Delta] = field(default_factory=list)

    def tokens(self, index: int = 0) -> list[int]:
        return [t for d in self.deltas if d.index == index for t in d.token_ids]

    def text(self, index: int = 0) -> str:
        return "".join(d.text for d in self.deltas if d.index == index)

    def finish(self, index: int = 0) -> Finish | None:
        ends = [d for d in self.deltas if d.index == index and d.finish is not None]
        assert len(ends) <= 1
        return ends[0].finish if ends else None

    @property
    def usage(self) -> TokenUsage:
        (last,) = [d for d in self.deltas if d.usage is not None]
        assert last is self.deltas[-1]
        assert last.usage is not None
        return last.usage


class RunningJob:
    """A submitted job."""

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        spec: SamplingSpec,
        *,
        continuation: Continuation | None = None,
        on_delta: Callable[[Delta], None] | None = None,
        asked: pb.GenerateRequest | None = None,
    ) -> None:
        self.id = f"test-{next(_ids)}"
        self.answer = Answer()
        self._engine = engine
        self._on_delta = on_delta
        self._news = asyncio.Event()
        self._done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = Job(
            self.id,
            prompt,
            spec,
            spec.max_tokens or 64,
            continuation or Continuation(),
            block_names=() if asked is None else prompt_blocks(asked),
            text_bytes=0 if asked is None else prompt_bytes(asked),
        )
        engine.submit(job, self._deliver, self._fail)

    async def result(self) -> Answer:
        """The whole answer; raises the job's Fault."""
        async with asyncio.timeout(90):
            return await self._done

    async def until(self, tokens: int) -> None:
        """Waits until that many tokens have come."""
        async with asyncio.timeout(90):
            while len(self.answer.tokens()) < tokens:
                self._news.clear()
                await self._news.wait()

    def abort(self) -> None:
        self._engine.abort(self.id)

    def _deliver(self, delta: Delta) -> None:
        assert not self._done.done(), "a delta after the end"
        self.answer.deltas.append(delta)
        self._news.set()
        if self._on_delta is not None:
            self._on_delta(delta)
        if delta.usage is not None:
            self._done.set_result(self.answer)

    def _fail(self, fault: Fault) -> None:
        assert not self._done.done(), "a failure after the end"
        self._done.set_exception(fault)


async def run_job(
    engine: Engine,
    prompt: Sequence[int],
    spec: SamplingSpec,
    *,
    continuation: Continuation | None = None,
) -> Answer:
    """Runs a job to its end."""
    return await RunningJob(engine, prompt, spec, continuation=continuation).result()


async def run_request(engine: Engine, asked: pb.GenerateRequest, spec: SamplingSpec) -> Answer:
    """Runs a request to its end, its prompt's blocks named as the service names them."""
    return await RunningJob(engine, await engine.encode(asked), spec, asked=asked).result()


async def until_idle(engine: Engine) -> None:
    """Waits until the engine reports no work."""
    async with asyncio.timeout(BOUND_S):
        while (load := engine.load()).running or load.waiting:
            await asyncio.sleep(0.005)
