"""Takes the looks of a plan and hands each on as soon as it is there. What fails costs its own.

Where every path is up at once, the paths take turns within each round, a different one first each
time; otherwise one path after the other is up, with all of its rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from bench.engine import figures
from bench.engine.contenders import Contenders
from bench.engine.plan import Path, Plan
from bench.engine.worker import WorkerLost
from tools.cluster.process import ClusterError

Tell = Callable[[str], None]
Record = dict[str, Any]
_Found = TypeVar("_Found")

_WARM_TOKENS = 16


class Run:
    """One run. `record` grows with each look; `save` is called after each."""

    def __init__(
        self,
        contenders: Contenders,
        plan: Plan,
        record: Record,
        save: Callable[[], None],
        tell: Tell,
    ) -> None:
        self._contenders = contenders
        self._plan = plan
        self._record = record
        self._save = save
        self._tell = tell
        self._began = time.monotonic()
        self._longest: dict[tuple[Path, int], float] = {}
        record |= {"samples": [], "cancels": [], "starts": {}, "failures": {}, "cut": False}

    async def all(self) -> None:
        """Everything that the plan says and that its time permits."""
        engines = list(dict.fromkeys(path.engine for path in self._plan.paths))
        if self._plan.alternate:
            if self._plan.together:
                await asyncio.gather(*(self._start(engine) for engine in engines))
            else:
                for engine in engines:
                    await self._start(engine)
            await self._measure(self._plan.paths)
            return
        for engine in engines:
            if await self._start(engine):
                await self._measure([path for path in self._plan.paths if path.engine == engine])
            self._tell(f"{engine}: ending")
            await self._contenders.end(engine)

    async def _start(self, engine: str) -> bool:
        """Whether it is up."""
        if self._late(0.0):
            self._fail(engine, "no time was left to start it")
            return False
        self._tell(f"{engine}: starting")
        since = time.monotonic()
        try:
            await self._contenders.start(engine)
        except (ClusterError, WorkerLost, OSError) as error:
            self._fail(engine, str(error))
            return False
        self._record["starts"][engine] = seconds = round(time.monotonic() - since, 1)
        self._tell(f"{engine}: up after {seconds:.0f} s")
        return True

    async def _measure(self, paths: Sequence[Path]) -> None:
        for path in paths:
            for streams in self._plan.takes(path):
                await self._try(path, self._warm_up(path, streams))
        for number in range(self._plan.rounds):
            for streams in self._plan.takes(paths[0]):
                for path in _turns(paths, number):
                    await self._look(path, streams, number)
            if number == 0:
                # Not last: a run that is cut short has them too.
                await self._cancels(paths)

    async def _warm_up(self, path: Path, streams: int) -> None:
        tokens = min(_WARM_TOKENS, self._plan.output_tokens)
        await self._contenders.look(path, streams, f"warm-{streams}", tokens)

    async def _look(self, path: Path, streams: int, number: int) -> None:
        if self._late(self._longest.get((path, streams), 0.0)):
            return
        since = time.monotonic()
        tokens = self._plan.output_tokens
        look = self._contenders.look(path, streams, f"{number}-{streams}", tokens)
        found = await self._try(path, look)
        if found is None:
            return
        self._longest[path, streams] = time.monotonic() - since
        where = {"path": path.value, "streams": streams, "round": number}
        self._record["samples"].append(where | found)
        self._save()
        self._tell(
            f"[{self._minutes()}] round {number + 1}/{self._plan.rounds}  {streams:4} streams  "
            f"{path.label:26}{figures.in_short(found)}"
        )

    async def _cancels(self, paths: Sequence[Path]) -> None:
        for path in paths:
            for number in range(self._plan.cancels):
                await self._cancel(path, number)

    async def _cancel(self, path: Path, number: int) -> None:
        if path not in (Path.SERVE, Path.SESSION) or self._late(1.0):
            return
        found = await self._try(path, self._contenders.cancel(path, f"cancel-{number}"))
        if found is not None:
            self._record["cancels"].append({"path": path.value, "round": number} | found)
            self._save()
            self._tell(
                f"[{self._minutes()}] {path.label}: {found['slot_ms']:.0f} ms from cancel to free "
                f"slot, {found['kv_ms']:.0f} ms to free KV cache"
            )

    async def _try(self, path: Path, work: Awaitable[_Found]) -> _Found | None:
        """None where the path does not work, now or since an earlier look."""
        if path.value in self._record["failures"] or path.engine in self._record["failures"]:
            if asyncio.iscoroutine(work):
                work.close()
            return None
        try:
            return await work
        except (ClusterError, WorkerLost, OSError) as error:
            self._fail(path.value, str(error))
            return None

    def _fail(self, name: str, why: str) -> None:
        self._record["failures"][name] = why
        self._save()
        self._tell(f"{name} FAILED and is left out from here on: {why}")

    def _late(self, needed: float) -> bool:
        """Whether so many more seconds are beyond the plan's time."""
        budget = self._plan.budget
        late = bool(budget) and time.monotonic() - self._began + needed > budget
        self._record["cut"] = self._record["cut"] or late
        return late

    def _minutes(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"


def _turns(paths: Sequence[Path], number: int) -> Iterator[Path]:
    """All of them, another one first in each round."""
    first = number % len(paths)
    yield from (*paths[first:], *paths[:first])
