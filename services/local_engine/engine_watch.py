"""Watches every engine of the process, from when it serves until it is closed on purpose.

One that dies or hangs for good ends the process with its streams failed, whenever it was loaded:
what a process serves after that would depend on which of its parts died. One that was leaving
anyway is only gone sooner. Hangs are hang_watch.py's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis.host import Host
from services.local_engine.engine import Engine
from services.local_engine.hang_watch import CONCERN, HangWatch

_log = logging.getLogger(__name__)


class EngineLost(Exception):
    """The engine died, or hangs. The process ends, so that its supervisor starts another."""


class EngineWatch:
    """The watches of a host's engines; times in seconds as HangWatch has them."""

    def __init__(self, host: Host, *, hang_after: float, hang_exit: float) -> None:
        self._host = host
        self._hang_after = hang_after
        self._hang_exit = hang_exit
        self._numbers = itertools.count(1)
        self._watches: dict[Engine, tuple[HangWatch, str, tuple[asyncio.Task[None], ...]]] = {}
        self._leaving: set[Engine] = set()
        self._lost: set[Engine] = set()

    @property
    def hung(self) -> bool:
        """Whether any of them hangs."""
        return any(hang.hung for hang, _, _ in self._watches.values())

    def observe(self, meter: Meter) -> None:
        """Creates the instruments."""

        def age(_: CallbackOptions) -> Iterable[Observation]:
            ages = [engine.heartbeat.age for engine in tuple(self._watches)]
            return [Observation(max(ages, default=0.0))]

        meter.create_observable_gauge(
            "anabranch.engine.heartbeat.age",
            callbacks=[age],
            unit="s",
            description="Since a step ended or work came, whichever is later; 0 without work",
        )
        meter.create_observable_gauge(
            "anabranch.engine.hung",
            callbacks=[lambda _: [Observation(int(self.hung))]],
            description="Whether the engine has work and has ended no step for too long",
        )

    def add(self, engine: Engine) -> None:
        """An engine that has started. Without effect when it is watched already."""
        if engine in self._watches:
            return
        number = next(self._numbers)
        concern = CONCERN if number == 1 else f"{CONCERN}-{number}"
        hang = HangWatch(
            engine,
            self._host.health,
            hang_after=self._hang_after,
            hang_exit=self._hang_exit,
            concern=concern,
        )
        tasks = self._host.tasks
        lost = tasks.create_task(self._stop_when_lost(engine, concern), name=f"{concern}-watch")
        hopeless = tasks.create_task(self._stop_when_hopeless(hang, engine), name=f"{concern}-hang")
        self._watches[engine] = (hang, concern, (lost, hopeless))

    def rests(self, engine: Engine, resting: bool) -> None:
        """It sleeps, or no more: nothing is expected of it then, and nothing asked."""
        watch = self._watches.get(engine)
        if watch is not None:
            watch[0].resting = resting

    def leaves(self, engine: Engine) -> None:
        """It finishes what it has, and is wanted for nothing else."""
        self._leaving.add(engine)

    async def discard(self, engine: Engine) -> None:
        """It is about to be closed: that it ends is no loss. One that was lost before it was to
        leave still ends the process."""
        self._leaving.discard(engine)
        watch = self._watches.pop(engine, None)
        if watch is None or engine in self._lost:
            return
        _, concern, tasks = watch
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._host.health.well(concern)

    async def _stop_when_lost(self, engine: Engine, concern: str) -> None:
        reason = await engine.lost()
        _log.error("engine lost", extra={"cause": reason})
        if engine in self._leaving:
            engine.give_up(reason)
            return
        self._lost.add(engine)
        self._host.health.trouble(concern, reason, restart=True)
        # Nothing is left to wait for, whatever the registry takes: its streams are resumed sooner.
        engine.give_up(reason)
        await self._host.stop_serving(reason)
        raise EngineLost(reason)

    async def _stop_when_hopeless(self, hang: HangWatch, engine: Engine) -> None:
        reason = await hang.hopeless()
        _log.error("engine given up", extra={"cause": reason})
        if engine in self._leaving:
            engine.give_up(reason)
            return
        self._lost.add(engine)
        # First out of the registry: what fails next is resumed, and not here.
        await self._host.stop_serving(reason)
        engine.give_up(reason)
        raise EngineLost(reason)
