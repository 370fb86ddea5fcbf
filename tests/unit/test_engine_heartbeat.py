"""What counts as a hang of an engine, and what does not, by a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from services.chassis.health import Health, Question
from services.chassis.settings import SettingsError
from services.local_engine.engine import Delta, Engine, EngineLoad, Finish, Job, TokenUsage
from services.local_engine.hang_watch import HangWatch
from services.local_engine.load_meter import LoadMeter, StepSize
from services.local_engine.settings import Settings

AFTER, EXIT = 60.0, 120.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def age_after(clock: Clock, meter: LoadMeter, seconds: float) -> float:
    clock.now += seconds
    return meter.heartbeat.age


def test_an_idle_engine_has_no_age_however_long_it_idles():
    clock = Clock()
    meter = LoadMeter(clock)
    assert age_after(clock, meter, 1e6) == 0
    job = meter.admit(10, 1)
    clock.now += 0.5
    job.prefilled()
    job.end()
    meter.step(0.5)
    assert age_after(clock, meter, 1e6) == 0
    assert not meter.heartbeat.in_doubt


def test_the_age_counts_from_the_first_work_after_idling():
    clock = Clock()
    meter = LoadMeter(clock)
    clock.now += 1e6
    meter.admit(10, 1)
    assert age_after(clock, meter, 5) == 5
    meter.admit(10, 1)  # further work does not begin it anew
    assert age_after(clock, meter, 5) == 10


def test_work_that_waits_while_nothing_runs_has_an_age():
    clock = Clock()
    meter = LoadMeter(clock)
    meter.admit(10, 1)
    assert meter.report(
        running=0, kv_used_tokens=0, kv_total_tokens=1, max_running=1, prefill_budget=1
    ).waiting
    assert age_after(clock, meter, AFTER) == AFTER


def test_each_step_is_a_beat_also_one_that_brings_no_token():
    clock = Clock()
    meter = LoadMeter(clock)
    meter.admit(100_000, 1)
    for _ in range(500):  # a long prompt, read in chunks
        assert age_after(clock, meter, 1.0) == 1.0
        meter.step(1.0, StepSize(200, 0, 0))
        assert meter.heartbeat.age == 0
    # Its loop goes round, though it cannot compute anything yet: a grammar is being compiled.
    for _ in range(500):
        clock.now += 1.0
        meter.step(None, StepSize(0, 0, 0))
    assert meter.heartbeat.age == 0


def test_work_that_is_taken_away_leaves_a_doubt_only_after_a_silence():
    clock = Clock()
    meter = LoadMeter(clock)
    job = meter.admit(10, 1)
    clock.now += 0.2
    job.end()
    assert meter.heartbeat.age == 0
    assert not meter.heartbeat.in_doubt
    first, second = meter.admit(10, 1), meter.admit(10, 1)
    clock.now += 30
    first.end()
    assert not meter.heartbeat.in_doubt
    second.end()
    assert meter.heartbeat.in_doubt
    assert meter.heartbeat.age == 30
    probe = meter.admit(1, 1)  # new work goes on with the old silence
    assert not meter.heartbeat.in_doubt
    assert age_after(clock, meter, 5) == 35
    probe.end()
    meter.step(0.1)
    assert meter.heartbeat.age == 0
    assert not meter.heartbeat.in_doubt


def test_time_in_which_this_process_did_not_run_is_not_the_engines():
    clock = Clock()
    meter = LoadMeter(clock)
    meter.admit(10, 1)
    clock.now += 500
    meter.heartbeat.excuse(490)
    assert meter.heartbeat.age == 10


# The watch


class Scripted:
    """An engine with a real load meter, whose steps the test ends."""

    def __init__(self, clock: Clock) -> None:
        self.meter = LoadMeter(clock)
        self.heartbeat = self.meter.heartbeat
        self.given_up: list[str] = []
        self.jobs: list[tuple[Job, Any, Callable[[Delta], None]]] = []

    async def encode_text(self, text: str) -> list[int]:
        return [1, 2]

    def load(self) -> EngineLoad:
        return EngineLoad(running=1)

    def submit(self, job: Job, on_delta: Any, on_fail: Any, on_plain: Any = None) -> None:
        self.jobs.append((job, self.meter.admit(2, 1), on_delta))

    def give_up(self, why: str) -> None:
        self.given_up.append(why)

    def finish_all(self) -> None:
        jobs, self.jobs = self.jobs, []
        for _, load, on_delta in jobs:
            load.end()
            on_delta(Delta(0, 0, "", (5,), finish=Finish.LENGTH, usage=TokenUsage(2, 0, 1)))
        self.meter.step(0.01)


class Scene:
    """A watch that looks when the test lets a second pass."""

    def __init__(self, hang_after: float = AFTER, hang_exit: float = EXIT) -> None:
        self.clock = Clock()
        self.engine = Scripted(self.clock)
        self.health = Health()
        self.health.started()
        self._ticks: asyncio.Queue[float] = asyncio.Queue()
        self.looked = asyncio.Event()
        self.watch = HangWatch(
            cast(Engine, self.engine),
            self.health,
            hang_after=hang_after,
            hang_exit=hang_exit,
            clock=self.clock,
            sleep=self._sleep,
        )
        self.task = asyncio.ensure_future(self.watch.hopeless())

    async def _sleep(self, seconds: float) -> None:
        self.looked.set()
        await self._ticks.get()

    async def passes(self, seconds: float, *, step: float = 1.0) -> None:
        """Lets time pass, with a look after each `step` seconds."""
        for _ in range(round(seconds / step)):
            await self._until_asleep()
            self.clock.now += step
            self.looked.clear()
            self._ticks.put_nowait(step)
            await self._until_asleep()

    async def _until_asleep(self) -> None:
        looked = asyncio.ensure_future(self.looked.wait())
        await asyncio.wait((looked, self.task), return_when=asyncio.FIRST_COMPLETED)
        looked.cancel()

    @property
    def live(self) -> bool:
        return not self.health.problem(Question.LIVENESS)


@pytest.fixture
async def scene():
    found = Scene()
    yield found
    found.task.cancel()


async def test_an_engine_that_ends_no_step_is_neither_live_nor_ready_until_one_ends(scene, caplog):
    scene.engine.meter.admit(10, 1)
    await scene.passes(AFTER - 1)
    assert scene.live
    assert not scene.watch.hung
    await scene.passes(2)
    assert scene.watch.hung
    assert not scene.live
    assert not scene.health.is_ready
    await scene.passes(20)
    assert [r.message for r in caplog.records].count("the engine hangs") == 1
    scene.engine.meter.step(80.0)
    await scene.passes(1)
    assert scene.live
    assert scene.health.is_ready
    assert "the engine works again" in caplog.text
    assert not scene.task.done()


async def test_an_engine_that_hangs_for_too_long_is_hopeless(scene):
    scene.engine.meter.admit(10, 1)
    await scene.passes(EXIT - 1)
    assert not scene.task.done()
    await scene.passes(1)
    assert "no step for 120 s" in await scene.task


@pytest.mark.parametrize("step", [59.0, 30.0, 1.0])
async def test_slow_steps_are_no_hang(scene, step: float):
    scene.engine.meter.admit(10, 1)
    for _ in range(10):
        await scene.passes(step)
        scene.engine.meter.step(step)
    assert scene.live
    assert not scene.task.done()


async def test_an_idle_engine_is_healthy_and_is_given_nothing_to_do(scene):
    await scene.passes(10 * EXIT)
    assert scene.live
    assert not scene.engine.jobs


async def test_a_hang_is_found_though_all_callers_have_left(scene):
    job = scene.engine.meter.admit(10, 1)
    await scene.passes(10)
    job.end()
    await scene.passes(1)
    assert len(scene.engine.jobs) == 1, "somebody must find out"
    await scene.passes(AFTER - 12)
    assert scene.live
    await scene.passes(2)
    assert not scene.live
    assert len(scene.engine.jobs) == 1


async def test_one_that_was_only_slow_answers_the_probe(scene):
    job = scene.engine.meter.admit(10, 1)
    await scene.passes(10)
    job.end()
    await scene.passes(1)
    assert scene.engine.jobs[0][0].max_tokens == 1
    scene.engine.finish_all()
    await scene.passes(2 * EXIT)
    assert scene.live
    assert not scene.engine.jobs
    # The next doubt is another one.
    job = scene.engine.meter.admit(10, 1)
    await scene.passes(10)
    job.end()
    await scene.passes(1)
    assert len(scene.engine.jobs) == 1


async def test_a_sleeping_engine_is_given_nothing_and_wakes_without_a_past(scene):
    job = scene.engine.meter.admit(10, 1)
    await scene.passes(10)
    job.end()
    assert scene.engine.heartbeat.in_doubt
    scene.watch.resting = True
    await scene.passes(2 * EXIT)
    assert not scene.engine.jobs, "a sleeping engine would never answer"
    assert scene.live
    scene.watch.resting = False
    await scene.passes(2)
    assert not scene.engine.jobs
    scene.engine.meter.admit(10, 1)
    await scene.passes(AFTER - 1)
    assert scene.live
    await scene.passes(2)
    assert not scene.live


async def test_a_process_that_was_stopped_blames_its_engine_for_nothing(scene):
    scene.engine.meter.admit(10, 1)
    await scene.passes(5)
    await scene.passes(3600, step=3600)
    assert scene.live
    assert not scene.task.done()
    await scene.passes(AFTER)
    assert not scene.live


async def test_a_hung_engine_that_is_to_end_anyway_keeps_nobody_waiting(scene):
    scene.engine.meter.admit(10, 1)
    await scene.passes(AFTER + 1)
    assert not scene.engine.given_up
    scene.health.leaves("shutting down")
    await scene.passes(2 * EXIT)
    assert len(scene.engine.given_up) == 1
    assert not scene.task.done(), "whoever ends it is at work already"


async def test_hangs_are_not_looked_for_when_that_is_off():
    scene = Scene(hang_after=0)
    scene.engine.meter.admit(10, 1)
    await scene.passes(10 * EXIT)
    assert scene.live
    assert not scene.task.done()
    scene.task.cancel()


async def test_a_hang_never_ends_the_process_when_that_is_off():
    scene = Scene(hang_exit=0)
    scene.engine.meter.admit(10, 1)
    await scene.passes(10 * EXIT)
    assert not scene.live
    assert not scene.task.done()
    scene.task.cancel()


def test_an_end_before_the_finding_is_refused():
    with pytest.raises(SettingsError, match="HANG_EXIT must not be below HANG_AFTER"):
        Settings(hang_after=60.0, hang_exit=30.0)
    assert Settings(hang_after=600.0, hang_exit=0.0).hang_exit == 0
    assert Settings(hang_after=0.0).hang_after == 0
