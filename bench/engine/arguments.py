"""How each path's vLLM is told the same: as arguments in process, on the command line, as settings
of the local engine. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bench.engine.plan import MODEL, Plan
from services.local_engine.on_vllm.options import VllmOptions, cpu_variables
from services.local_engine.settings import Settings

_OWN = {field.name for field in fields(Settings)}
"""What the engine has a setting of its own for."""

_SIM_STEP = "2000,0,0,0"


def vllm_arguments(plan: Plan) -> dict[str, Any]:
    """Keyword arguments of vllm.LLM and AsyncEngineArgs."""
    model = plan.model
    found: dict[str, Any] = {
        "model": model.path,
        "dtype": model.dtype,
        "max_num_seqs": plan.slots,
        "max_model_len": model.max_model_len,
        "seed": 0,
    }
    if model.max_num_batched_tokens:
        found["max_num_batched_tokens"] = model.max_num_batched_tokens
    if plan.device == "gpu":
        found["gpu_memory_utilization"] = model.gpu_memory_utilization
    else:
        found["enforce_eager"] = True
    return found | further(plan)


def further(plan: Plan) -> dict[str, Any]:
    """What no setting of the benchmark's own stands for."""
    found = dict(plan.model.further)
    if plan.model.load_format:
        found["load_format"] = plan.model.load_format
    return found


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments of vLLM's OpenAI server, which has an option for each."""
    line = []
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            line.append(option if value else "--no-" + option.removeprefix("--"))
        else:
            line += [option, value if isinstance(value, str) else json.dumps(value)]
    return line


def environment(plan: Plan) -> dict[str, str]:
    """Variables of vLLM's processes: on a CPU also those that the engine derives, of how it
    computes."""
    # A fork would inherit the loop of the process that answers orders.
    variables = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if plan.device == "gpu":
        return variables
    options = VllmOptions(model=plan.model.path, name=MODEL, enforce_eager=True)
    return {
        **variables,
        **cpu_variables(options),
        "VLLM_CPU_KVCACHE_SPACE": str(plan.model.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def engine_settings(plan: Plan) -> dict[str, str]:
    """ANABRANCH_ENGINE_*, without the prefix."""
    settings = {"SERVED_MODEL_NAME": MODEL, "MAX_NUM_SEQS": str(plan.slots)}
    if plan.model.simulated:
        return settings | {
            "ENGINE": "sim",
            "STEP_MODEL": _SIM_STEP,
            "SIM_KV_TOKENS": "10000000",
            "MAX_MODEL_LEN": str(plan.model.max_model_len),
        }
    model = plan.model
    settings |= {
        "MODEL": model.path,
        "DTYPE": model.dtype,
        "MAX_MODEL_LEN": str(model.max_model_len),
        "MAX_NUM_BATCHED_TOKENS": str(model.max_num_batched_tokens),
        "GPU_MEMORY_UTILIZATION": str(model.gpu_memory_utilization),
        "CPU_KV_CACHE_GIB": str(model.kv_cache_gib),
    }
    return settings | as_settings(further(plan))


def as_settings(arguments: Mapping[str, Any]) -> dict[str, str]:
    """vLLM's arguments as settings of the engine: those of its own where it has them."""
    rest = dict(arguments)
    settings = {}
    for name in sorted(_OWN & set(rest)):
        value = rest.pop(name)
        settings[name.upper()] = value if isinstance(value, str) else json.dumps(value)
    if rest:
        settings["VLLM_ARGS"] = json.dumps(rest)
    return settings
