"""Memory, parallelism, guessing ahead: what reaches vLLM, and what is refused before it loads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.chassis.settings import SettingsError, load
from services.local_engine.app import make_engine
from services.local_engine.load_meter import LoadMeter
from services.local_engine.on_vllm.arguments import engine_arguments
from services.local_engine.on_vllm.checks import check_options
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.installed import Installed
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.steps import StepRecorder
from services.local_engine.on_vllm.tuning import Tuning, speculation, tuning_arguments
from services.local_engine.settings import Settings
from services.local_engine.step_model import StepModel

NGRAM = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'
GPUS = Installed(
    version="1.2",
    is_cpu=False,
    devices=4,
    arguments=frozenset(
        {"block_size", "cpu_offload_gb", "data_parallel_size", "enable_expert_parallel"}
        | {"kv_cache_dtype", "kv_offloading_size", "load_format", "speculative_config"}
        | {"tokenizer", "enable_prefix_caching"}
    ),
    quantizations=frozenset({"fp8", "awq", "gptq_marlin", "compressed-tensors"}),
    kv_cache_dtypes=frozenset({"auto", "fp8", "fp8_e5m2"}),
    load_formats=frozenset({"auto", "dummy"}),
    speculations=frozenset({"ngram", "eagle", "draft_model"}),
)
CPU = replace(GPUS, is_cpu=True, devices=0, kv_cache_dtypes=frozenset({"auto"}))


def settings(**values: str) -> Settings:
    return load(
        Settings, "ANABRANCH_ENGINE_", {f"ANABRANCH_ENGINE_{k}": v for k, v in values.items()}
    )


def options(**more: Any) -> VllmOptions:
    return VllmOptions(**{"model": "m", "name": "m", **more})


def test_what_is_not_set_is_left_to_vllm():
    assert tuning_arguments(Settings().tuning) == {}


def test_every_setting_reaches_vllm_under_its_name():
    engine = make_engine(
        settings(
            KV_CACHE_DTYPE="fp8",
            CPU_OFFLOAD_GIB="4.5",
            KV_OFFLOAD_GIB="16",
            DATA_PARALLEL_SIZE="2",
            SPECULATIVE=NGRAM,
            LOAD_FORMAT="dummy",
            TOKENIZER="/models/tokenizer",
            PREFIX_CACHING="false",
            BLOCK_SIZE="32",
        )
    )
    assert isinstance(engine, VllmEngine)
    arguments = engine_arguments(engine._options, is_cpu=False)
    expected = {
        "kv_cache_dtype": "fp8",
        "cpu_offload_gb": 4.5,
        "kv_offloading_size": 16.0,
        "data_parallel_size": 2,
        "speculative_config": speculation(NGRAM),
        "load_format": "dummy",
        "tokenizer": "/models/tokenizer",
        "enable_prefix_caching": False,
        "block_size": 32,
    }
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ngram", "is no JSON"),
        ("[4]", "must be a JSON object"),
        ('{"num_speculative_tokens": 4}', "must name a method"),
        ('{"method": "ngram"}', "num_speculative_tokens, at least 1"),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "at least 1"),
        ('{"method": "ngram", "num_speculative_tokens": true}', "at least 1"),
        ('{"method": "eagle", "num_speculative_tokens": 2}', "model that method eagle guesses"),
        ('{"method": "ngram", "num_speculative_tokens": 2, "model": "x"}', "may not name a model"),
        (
            '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 0}',
            "at least 1 token",
        ),
        (
            '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 5, '
            '"prompt_lookup_max": 3}',
            "above its prompt_lookup_max",
        ),
    ],
)
def test_a_guess_that_makes_no_sense_is_refused_with_its_reason(text: str, complaint: str):
    with pytest.raises(SettingsError, match=complaint):
        settings(SPECULATIVE=text)


@pytest.mark.parametrize(
    ("asked", "here", "complaint"),
    [
        ({"quantization": "gptq_marlim"}, GPUS, "did you mean gptq_marlin"),
        ({"further": {"blok_size": 1}}, GPUS, r"vLLM 1\.2 does not have; did you mean block_size"),
        ({"tuning": Tuning(load_format="dumy")}, GPUS, "did you mean dummy"),
        ({"tuning": Tuning(kv_cache_dtype="fp9")}, GPUS, "has auto, fp8, fp8_e5m2"),
        ({"tuning": Tuning(kv_cache_dtype="fp8")}, CPU, "on a CPU has auto"),
        ({"tuning": Tuning(cpu_offload_gib=1)}, CPU, "cpu_offload_gib is for GPUs"),
        ({"tuning": Tuning(kv_offload_gib=1)}, CPU, "cpu_kv_cache_gib is its size"),
        (
            {"tensor_parallel_size": 4, "tuning": Tuning(data_parallel_size=2)},
            GPUS,
            "is 8 GPUs, and 4 are visible",
        ),
        ({"tuning": Tuning(speculative={"method": "eagel"})}, GPUS, "did you mean eagle"),
        ({"model": "/m/x.gguf"}, GPUS, "install the package vllm-gguf-plugin"),
        ({"model": "/m/x.gguf"}, GPUS, "set tokenizer to"),
        ({"model": "/m/x.gguf"}, CPU, "reads on GPUs only"),
        (
            {"tuning": Tuning(kv_offload_gib=1)},
            replace(GPUS, arguments=frozenset()),
            "no argument kv_offloading_size",
        ),
    ],
)
def test_what_this_vllm_or_machine_cannot_do_is_refused_with_what_to_do(
    asked: dict[str, Any], here: Installed, complaint: str
):
    with pytest.raises(ValueError, match=complaint):
        check_options(options(**asked), here)


@pytest.mark.parametrize(
    ("asked", "here"),
    [
        ({}, CPU),
        ({"quantization": "fp8", "tuning": Tuning(kv_cache_dtype="fp8")}, GPUS),
        ({"tensor_parallel_size": 2, "tuning": Tuning(data_parallel_size=2)}, GPUS),
        ({"tensor_parallel_size": 2}, CPU),
        (
            {"tensor_parallel_size": 16, "further": {"distributed_executor_backend": "ray"}},
            replace(GPUS, arguments=GPUS.arguments | {"distributed_executor_backend"}),
        ),
        ({"quantization": "new"}, replace(GPUS, quantizations=frozenset())),
        (
            {"model": "/m/x.gguf", "tuning": Tuning(tokenizer="/m/original")},
            replace(GPUS, quantizations=GPUS.quantizations | {"gguf"}),
        ),
    ],
)
def test_what_can_be_done_is_not_refused(asked: dict[str, Any], here: Installed):
    check_options(options(**asked), here)


def test_all_that_is_wrong_is_said_at_once():
    wrong = options(quantization="x", tuning=Tuning(cpu_offload_gib=1, kv_cache_dtype="fp8"))
    with pytest.raises(ValueError, match="quantization") as refused:
        check_options(wrong, CPU)
    assert str(refused.value).count(";") == 2


def test_tokens_that_were_guessed_do_not_count_as_a_prompt_that_is_read():
    class Details:
        num_ctx_tokens, num_generation_requests, num_generation_tokens = 0, 2, 10

    class Stats:
        num_running_reqs, kv_cache_usage, iteration_details = 2, 0.5, Details

    def prefilled(per_decode: int) -> float:
        meter = LoadMeter(lambda: 1.0, StepModel(0.01, 1e-3, 0, 0))
        StepRecorder(meter, lambda: 1.0, 64, per_decode).record(Stats)
        return meter.report(
            running=2, kv_used_tokens=0, kv_total_tokens=0, max_running=9, prefill_budget=64
        ).prefill_tokens_per_step

    assert prefilled(Tuning(speculative=speculation(NGRAM)).tokens_per_decode) == 0
    assert prefilled(1) == 8


@pytest.mark.vllm
def test_the_installed_vllm_tells_what_it_knows():
    from services.local_engine.on_vllm.installed import installed

    here = installed()
    assert {"fp8", "compressed-tensors", "gptq_marlin"} <= here.quantizations
    assert "dummy" in here.load_formats
    assert {"ngram", "eagle"} <= here.speculations
    assert "auto" in here.kv_cache_dtypes
    check_options(options(tuning=Tuning(speculative=speculation(NGRAM), block_size=32)), here)
