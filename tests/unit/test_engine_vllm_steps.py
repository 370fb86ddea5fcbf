"""vLLM's statistics of a step, as its versions give them, become the load and pace of steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.local_engine.engine import EngineLoad
from services.local_engine.load_meter import JobLoad, LoadMeter
from services.local_engine.on_vllm.steps import StepRecorder
from services.local_engine.step_model import StepModel

BUDGET = 64


class Scene:
    """A recorder with a clock; steps take 10 ms and 1 ms a prompt token."""

    def __init__(self) -> None:
        self.now = 50.0
        self.meter = LoadMeter(lambda: self.now, StepModel(0.01, 1e-3, 0, 0))
        self.recorder = StepRecorder(self.meter, lambda: self.now, BUDGET)

    def job(self, prompt: int) -> JobLoad:
        if not self.meter.sequences:
            self.recorder.begun()
        return self.meter.admit(prompt, 1)

    def step(self, seconds: float, running: int, details: Any = None, **more: Any) -> EngineLoad:
        self.now += seconds
        stats = SimpleNamespace(num_running_reqs=running, kv_cache_usage=0.5, **more)
        if details is not None:
            stats.iteration_details = SimpleNamespace(
                num_ctx_tokens=details[0],
                num_generation_requests=details[1],
                num_generation_tokens=details[2] if len(details) > 2 else details[1],
            )
        self.recorder.record(stats, None, None, 0, something_new=1)
        return self.meter.report(
            running=self.recorder.running,
            kv_used_tokens=0,
            kv_total_tokens=0,
            max_running=9,
            prefill_budget=BUDGET,
        )


@pytest.mark.parametrize("tells", [True, False])
def test_a_prompt_read_in_pieces_counts_its_rest_whether_vllm_tells_or_not(tells):
    scene = Scene()
    job = scene.job(150)
    load = scene.step(0.074, 1, (64, 0) if tells else None)
    assert load.queued_prefill_tokens == 86
    load = scene.step(0.074, 1, (64, 0) if tells else None)
    assert (load.queued_prefill_tokens, load.context_tokens) == (22, 128)
    job.prefilled()
    job.produced(1)
    load = scene.step(0.032, 1, (22, 0) if tells else None)
    assert (load.queued_prefill_tokens, load.context_tokens) == (0, 151)
    assert load.prefill_tokens_per_step == pytest.approx(50)
    assert load.step_time_ratio == pytest.approx(1)
    job.produced(1)
    assert scene.step(0.010, 1, (0, 1) if tells else None).step_time_ratio == pytest.approx(1)


def test_an_idle_gap_is_no_step_and_the_step_after_it_is_timed_from_its_job():
    scene = Scene()
    for _ in range(3):
        job = scene.job(10)
        job.prefilled()
        job.produced(1)
        job.choice_ended()
        job.end()
        assert scene.step(0.02, 0, (10, 0)).step_time_ratio == pytest.approx(1)
        scene.now += 30


def test_a_gap_after_jobs_that_were_aborted_is_no_step_either():
    scene = Scene()
    job = scene.job(10)
    job.prefilled()
    job.produced(1)
    scene.step(0.02, 1, (10, 0))
    job.end()  # aborted: vLLM says no more of it
    scene.now += 30
    job = scene.job(10)
    job.prefilled()
    job.produced(1)
    assert scene.step(0.02, 1, (10, 0)).step_time_ratio == pytest.approx(1)


def test_a_sequence_that_reads_its_context_again_is_seen_to_prefill():
    scene = Scene()
    job = scene.job(10)
    job.prefilled()
    job.produced(1)
    scene.step(0.02, 2, (10, 0))
    load = scene.step(0.042, 2, (0, 2, 34))
    assert load.step_time_ratio == pytest.approx(1)


def test_once_vllm_tells_of_steps_one_without_is_none():
    scene = Scene()
    job = scene.job(100)
    scene.step(0.074, 1, (64, 0))
    assert scene.step(0.001, 1).queued_prefill_tokens == 36
    job.end()


def test_statistics_that_are_left_out_are_no_error():
    scene = Scene()
    scene.recorder.record(None, None)
    assert scene.step(0.01, 0).running == 0
