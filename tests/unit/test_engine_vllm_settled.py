"""What vLLM looks up once: never what a later model's loading has changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from services.local_engine.on_vllm.settled import Environment, settle_end

pytestmark = pytest.mark.vllm

NAME = "VLLM_CPU_KVCACHE_SPACE"


@pytest.fixture
def environment(monkeypatch):
    from vllm import envs

    monkeypatch.setenv(NAME, "1")
    envs.disable_envs_cache()
    yield Environment()
    envs.disable_envs_cache()


def value():
    from vllm import envs

    return getattr(envs, NAME)


def test_variables_are_fixed_while_an_engine_runs(environment, monkeypatch):
    environment.loading()
    environment.loaded(runs=True)
    monkeypatch.setenv(NAME, "2")
    assert value() == 1
    environment.closed()
    assert value() == 2


def test_a_model_that_is_loading_finds_its_own_variables(environment, monkeypatch):
    environment.loading()
    environment.loaded(runs=True)
    environment.loading()
    monkeypatch.setenv(NAME, "2")
    assert value() == 2
    environment.loaded(runs=False)
    monkeypatch.setenv(NAME, "3")
    assert value() == 2
    environment.loading()
    environment.loaded(runs=True)
    environment.closed()
    monkeypatch.setenv(NAME, "4")
    assert value() == 3, "one engine runs on"


def test_the_end_of_a_sequence_is_looked_for_once():
    asked = []

    def look_up() -> int:
        asked.append(1)
        return 7

    llm = SimpleNamespace(renderer=SimpleNamespace(get_eos_token_id=look_up))
    settle_end(llm)
    assert [llm.renderer.get_eos_token_id() for _ in range(3)] == [7, 7, 7]
    assert len(asked) == 1
    settle_end(SimpleNamespace())
