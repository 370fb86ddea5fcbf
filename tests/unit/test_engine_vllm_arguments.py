"""Arguments of vLLM beyond the engine's own settings: what is passed on, and what is refused."""

from __future__ import annotations

import pytest

from services.chassis.settings import SettingsError, load
from services.local_engine.app import make_engine
from services.local_engine.on_vllm.arguments import engine_arguments
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import OWN_ARGUMENTS, VllmOptions, further_arguments
from services.local_engine.settings import Settings


def test_arguments_of_the_json_object_reach_vllm_beside_the_engines_own():
    options = VllmOptions(model="m", name="m", further={"enable_expert_parallel": True})
    arguments = engine_arguments(options, is_cpu=False)
    assert arguments["enable_expert_parallel"] is True
    assert arguments["model"] == "m"


def test_quantization_reaches_vllm_and_empty_leaves_it_to_the_checkpoint():
    assert "quantization" not in engine_arguments(VllmOptions("m", "m"), is_cpu=False)
    options = VllmOptions("m", "m", quantization="fp8")
    assert engine_arguments(options, is_cpu=False)["quantization"] == "fp8"


def test_the_settings_carry_both_to_the_engine():
    environ = {
        "ANABRANCH_ENGINE_QUANTIZATION": "awq_marlin",
        "ANABRANCH_ENGINE_VLLM_ARGS": '{"hf_overrides": {"rope_theta": 1e6}}',
    }
    engine = make_engine(load(Settings, "ANABRANCH_ENGINE_", environ))
    assert isinstance(engine, VllmEngine)
    arguments = engine_arguments(engine._options, is_cpu=False)
    assert arguments["quantization"] == "awq_marlin"
    assert arguments["hf_overrides"] == {"rope_theta": 1e6}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"tensor_parallel_size": 2}', "may not hold tensor_parallel_size"),
        ('{"block_size": 32}', "may not hold block_size"),
        ('{"scheduling_policy": "fcfs"}', "may not hold scheduling_policy"),
        ("[1]", "must be a JSON object"),
        ("{block_size: 1}", "is no JSON"),
        ('{"--block-size": 1}', "no argument's name"),
        ('{"_api_process_rank": 1}', "no argument's name"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_with_its_reason(text: str, complaint: str):
    with pytest.raises(SettingsError, match=complaint):
        load(Settings, "ANABRANCH_ENGINE_", {"ANABRANCH_ENGINE_VLLM_ARGS": text})


def test_every_argument_that_the_engine_sets_is_refused_from_outside():
    options = VllmOptions("m", "m", max_model_len=1, max_num_batched_tokens=1, quantization="fp8")
    assert set(engine_arguments(options, is_cpu=True)) <= OWN_ARGUMENTS
    for name in OWN_ARGUMENTS:
        with pytest.raises(ValueError, match=f"may not hold {name}:"):
            further_arguments(f'{{"{name}": null}}')


@pytest.mark.vllm
def test_the_installed_vllm_has_the_arguments_that_are_refused():
    from vllm.engine.arg_utils import AsyncEngineArgs

    from services.local_engine.on_vllm.loading import _field_names

    assert _field_names(AsyncEngineArgs) >= OWN_ARGUMENTS
