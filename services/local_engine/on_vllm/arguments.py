"""vLLM's arguments from our options. Pure: does not import vLLM."""

from __future__ import annotations

from typing import Any

from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.sampling import MAX_ALTERNATIVES
from services.local_engine.on_vllm.tuning import tuning_arguments


def engine_arguments(options: VllmOptions, *, is_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs, without those that need vLLM's own types."""
    eager = options.enforce_eager
    arguments: dict[str, Any] = {
        "model": options.model,
        "served_model_name": options.name,
        "dtype": "float32" if is_cpu and options.dtype == "auto" else options.dtype,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "enforce_eager": is_cpu if eager is None else eager,
        "seed": options.seed,
        "max_logprobs": MAX_ALTERNATIVES + 1,
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
    }
    for name in (
        *("max_model_len", "max_num_batched_tokens"),
        *("num_gpu_blocks_override", "quantization"),
    ):
        if getattr(options, name):
            arguments[name] = getattr(options, name)
    return {**options.further, **arguments, **tuning_arguments(options.tuning)}
