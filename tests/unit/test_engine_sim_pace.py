"""The simulation keeps its pace on a machine that wakes it late, and slows when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.local_engine.engine import EngineLoad, SamplingSpec
from services.local_engine.simulation.engine import SimEngine, SimOptions
from services.local_engine.slow_spells import slow_spells
from services.local_engine.step_model import StepModel
from tests.support.engines import RunningJob

STEP_S = 0.01


class LateClock:
    """Time that passes only in sleeps, each of them longer than asked for."""

    def __init__(self, late: Callable[[int], float]) -> None:
        self.now = 1000.0
        self._late = late
        self._sleeps = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._sleeps += 1
        self.now += seconds + self._late(self._sleeps)
        await asyncio.sleep(0)


async def run(
    tokens: int, late: Callable[[int], float], **options: object
) -> tuple[float, list[EngineLoad]]:
    """How long a job of so many tokens takes, and the load at each of them."""
    clock = LateClock(late)
    options.setdefault("pace", StepModel(STEP_S, 0, 0, 0))
    engine = SimEngine(SimOptions(**options), clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    await engine.start()
    started, loads = clock.now, []
    spec = SamplingSpec(max_tokens=tokens, ignore_eos=True)
    job = RunningJob(engine, [5] * 8, spec, on_delta=lambda _: loads.append(engine.load()))
    await job.result()
    took = clock.now - started
    await engine.close()
    return took, loads


async def test_late_wake_ups_do_not_add_up():
    took, loads = await run(100, lambda _: 0.004)
    assert took == pytest.approx(100 * STEP_S, abs=0.005)
    assert loads[-1].step_time_ratio == pytest.approx(1)


async def test_what_a_stall_of_several_steps_cost_is_made_good():
    took, loads = await run(100, lambda sleep: 0.2 if sleep == 20 else 0.0)
    assert took == pytest.approx(100 * STEP_S, abs=0.005)
    assert max(load.step_time_ratio for load in loads) == pytest.approx(1)


async def test_a_long_stall_is_not_made_good_and_shows():
    took, loads = await run(80, lambda sleep: 5.0 if sleep == 35 else 0.0)
    assert took == pytest.approx(80 * STEP_S + 5.0 - 0.25, abs=0.02)
    assert max(load.step_time_ratio for load in loads) > 2


async def test_a_simulation_that_is_slow_for_a_while_says_so_and_then_no_more():
    spells = slow_spells("at=1s,for=3s,factor=3")
    took, loads = await run(400, lambda _: 0.0, slow_spells=spells)
    before, during, after = (loads[n].step_time_ratio for n in (90, 150, 399))
    assert before == pytest.approx(1)
    assert during == pytest.approx(3, rel=0.01)
    assert after == pytest.approx(1, rel=0.01)
    # Three seconds of it held a third of the steps that they would have.
    assert took == pytest.approx(4.0 + 2.0, abs=0.05)


async def test_the_simulation_tells_its_given_pace_at_its_speed():
    pace = StepModel.parse("5753,17.25,6,0.052")
    _, loads = await run(5, lambda _: 0.0, pace=pace, speed=2.0)
    assert loads[-1].step_model == StepModel.parse("2876.5,8.625,3,0.026")
    assert loads[-1].step_time_ratio == pytest.approx(1)
