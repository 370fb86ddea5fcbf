"""vLLM's own metrics are passed on for as long as their model is served."""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
import pytest

from services.local_engine.engine_metrics import VllmCollector


@pytest.fixture
def running() -> Iterator[prometheus_client.Gauge]:
    gauge = prometheus_client.Gauge("vllm:test_running", "of a test", ["model_name", "engine"])
    yield gauge
    prometheus_client.REGISTRY.unregister(gauge)


def seen(served: set[str]) -> dict[str, float]:
    return {
        sample.labels["model_name"]: sample.value
        for metric in VllmCollector(lambda: served).collect()
        if metric.name == "vllm:test_running"
        for sample in metric.samples
    }


def test_what_vllm_says_of_a_model_ends_with_the_model(running: prometheus_client.Gauge) -> None:
    running.labels("lake", "0").set(3)
    running.labels("river", "0").set(2)
    assert seen({"lake", "river"}) == {"lake": 3, "river": 2}
    assert seen({"river"}) == {"river": 2}
    assert seen(set()) == {}
    assert len(running.collect()[0].samples) == 2, "vLLM's own is as it was"
