"""Finds out that the engine hangs, and tells: health, log, and in the end that it is over.

A hang is work without the end of a step for too long (heartbeat.py). What a lost engine means for
the process is app.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.chassis.errors import Fault
from services.chassis.health import Health
from services.local_engine.engine import Delta, Engine, Job, SamplingSpec

_log = logging.getLogger(__name__)

CONCERN = "engine"
"""What the engine's troubles are called in the process's health."""
_LOOK_EVERY_S = 1.0
_PROBE = SamplingSpec(temperature=0.0)


class HangWatch:
    """Looks at an engine's heartbeat from the end of its start on.

    `hang_after` seconds without a step make the process neither ready nor live until a step ends;
    0: never, and nothing else here happens then. `hang_exit` seconds make it hopeless; 0: never.
    No step of a sound engine comes near a minute: chunks bound what one step reads, and kernels
    are compiled before, in its start.
    """

    def __init__(
        self,
        engine: Engine,
        health: Health,
        *,
        hang_after: float,
        hang_exit: float,
        concern: str = CONCERN,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._health = health
        self._concern = concern
        self._after = hang_after
        self._exit = hang_exit
        self._clock = clock
        self._sleep = sleep
        self._period = min(_LOOK_EVERY_S, hang_after / 10) if hang_after else _LOOK_EVERY_S
        self._prompt: list[int] = []
        self._probes = 0
        self._probing = False
        self._given_up = False
        self.hung = False
        self.resting = False
        """Whether it sleeps: it ends no step, and is not to be given any work."""

    async def hopeless(self) -> str:
        """Waits until only a new process helps, and says why."""
        self._prompt = await self._engine.encode_text("Are you there?")
        due = self._clock()
        while True:
            due += self._period
            await self._sleep(max(0.0, due - self._clock()))
            late = self._clock() - due
            if late > self._period:
                # This process was stopped, or its loop held up: it could not hear of steps.
                self._engine.heartbeat.excuse(late)
                due = self._clock()
            if self.resting:
                self._engine.heartbeat.rest()
                self._works()
            elif self._after and self._look():
                return f"the engine has ended no step for {self._exit:g} s, though it has work"

    def _look(self) -> bool:
        """Takes note of the heartbeat; whether it is hopeless."""
        age = self._engine.heartbeat.age
        if age < self._after:
            self._works()
        elif not self.hung:
            self._hangs(age)
        if self.hung and self._health.is_leaving and not self._given_up:
            # Nobody need wait for what will not come: the process ends as soon as it can.
            self._given_up = True
            self._engine.give_up("the engine hangs, and its process is ending")
        if self._engine.heartbeat.in_doubt and not self._probing and not self._given_up:
            self._probe()
        return self.hung and not self._health.is_leaving and 0 < self._exit <= age

    def _hangs(self, age: float) -> None:
        self.hung = True
        load = self._engine.load()
        why = f"the engine has ended no step for more than {self._after:g} s, though it has work"
        self._health.trouble(self._concern, why, restart=True)
        _log.error(
            "the engine hangs",
            extra={"seconds": round(age, 1), "running": load.running, "waiting": load.waiting},
        )

    def _works(self) -> None:
        if self.hung:
            self.hung = False
            self._health.well(self._concern)
            _log.warning("the engine works again")

    def _probe(self) -> None:
        """Gives it one token to make: callers have left it in a silence, so nobody else finds out
        whether it works."""
        self._probing = True
        self._probes += 1
        job = Job(f"heartbeat-{self._probes}", self._prompt, _PROBE, 1)
        self._engine.submit(job, self._probe_answers, self._probe_fails)

    def _probe_answers(self, delta: Delta) -> None:
        self._probing = delta.usage is None

    def _probe_fails(self, fault: Fault) -> None:
        self._probing = False
        _log.warning("the engine refuses a probe", extra={"cause": fault.message})
