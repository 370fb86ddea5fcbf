"""vLLM's arguments from our options. Pure: does not import vLLM."""

from __future__ import annotations

from typing import Any

from services.local_engine.on_vllm.adapters import adapter_arguments
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
        "trust_remote_code": options.trust_remote_code,
        "max_logprobs": MAX_ALTERNATIVES + 1,
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        "runner": "pooling" if options.embeds else "generate",
        # Of no effect on a model that reads text only. Other media have no place in the contract.
        "limit_mm_per_prompt": {"image": options.images, "video": 0, "audio": 0},
    }
    for name in (
        *("max_model_len", "max_num_batched_tokens"),
        *("num_gpu_blocks_override", "quantization", "reasoning_parser"),
    ):
        if getattr(options, name):
            arguments[name] = getattr(options, name)
    return {
        **options.further,
        **arguments,
        **adapter_arguments(options),
        **tuning_arguments(options.tuning),
    }
