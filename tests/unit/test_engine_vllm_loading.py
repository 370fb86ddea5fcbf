"""How vLLM is configured, where the reason is nowhere else to be seen."""

from __future__ import annotations

import pytest

from services.local_engine.on_vllm.loading import _event_arguments

pytestmark = pytest.mark.vllm


def test_events_of_the_cache_are_not_kept_in_the_engine_core():
    found = _event_arguments("ipc:///events", frozenset({"kv_events_config"}))["kv_events_config"]
    assert found.enable_kv_cache_events
    assert found.endpoint == "ipc:///events"
    assert found.buffer_steps == 1


def test_a_vllm_that_has_no_events_is_asked_for_none():
    assert _event_arguments("ipc:///events", frozenset()) == {}
