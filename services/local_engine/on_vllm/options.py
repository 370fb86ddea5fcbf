"""What VllmEngine can be told, and the process variables that vLLM must find. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.local_engine.forms import FormLimits
from services.local_engine.on_vllm.tuning import TUNING_ARGUMENTS, Tuning
from services.local_engine.step_model import StepModel

OWN_ARGUMENTS = frozenset(
    {
        *("dtype", "enforce_eager", "gpu_memory_utilization", "max_model_len"),
        *("max_num_batched_tokens", "max_num_seqs", "model", "pipeline_parallel_size"),
        *("convert", "limit_mm_per_prompt", "runner"),
        *("quantization", "reasoning_parser", "seed", "served_model_name", "tensor_parallel_size"),
        *("disable_log_stats", "enable_log_requests", "enable_logging_iteration_details"),
        *("structured_outputs_config", "trust_remote_code"),
        *("kv_events_config", "max_logprobs", "scheduling_policy", "use_tqdm_on_load"),
        *("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank", "enable_sleep_mode"),
        *TUNING_ARGUMENTS,
    }
)
"""Arguments of vLLM that this engine sets: they have settings of their own, or no choice."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How to load a model. Zero and empty mean vLLM's own choice, or what the comment says."""

    model: str
    """A checkpoint directory, or the name of a Hugging Face model."""
    name: str
    dtype: str = "auto"
    """auto: the checkpoint's own, but float32 on a CPU, where bfloat16 may give nonsense."""
    max_num_seqs: int = 256
    max_model_len: int = 0
    max_num_batched_tokens: int = 0
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kv_cache_gib: int = 2
    """Size of the KV cache on a CPU; a GPU's follows from gpu_memory_utilization."""
    cpu_threads: int = 0
    """Threads that compute on a CPU; 0 leaves one core to the rest of the process."""
    enforce_eager: bool | None = None
    """None: eager on a CPU, where compiling takes minutes; compiled on a GPU."""
    seed: int = 0
    num_gpu_blocks_override: int = 0
    """Blocks of the KV cache, fewer than there is room for: tests of eviction need few."""
    prefix_events: bool = True
    """Follow what the prefix cache holds, where vLLM tells it."""
    step_model: StepModel | None = None
    """The pace that step_time_ratio compares with; None learns it from the steps seen."""
    images: int = 8
    """Images that a request may hold at most, for a model that reads them; 0: none."""
    embeds: bool = False
    """Load it as a model that embeds: a pooling model, or the layers below a generating one's
    head."""
    quantization: str = ""
    """As vLLM calls it; empty: what the checkpoint says."""
    max_adapters: int = 0
    """LoRA adapters that may be loaded; 0 leaves them switched off."""
    max_adapter_rank: int = 16
    sleep_mode: bool = False
    """Weights may be moved out of the GPU's memory and back."""
    hub: bool = False
    """Names of the hub may be loaded later, so that it must not be switched off now."""
    tool_parser: str = ""
    """Of vLLM's registry; empty: requests with tools are refused."""
    reasoning_parser: str = ""
    """Of vLLM's registry; empty: reasoning is not told from the answer."""
    chat_template: str = ""
    """A file to use in place of the model's own chat template."""
    trust_remote_code: bool = False
    """Run Python that comes with the checkpoint."""
    forms: FormLimits = field(default_factory=FormLimits)
    """What judging the form of an answer may take."""
    tuning: Tuning = field(default_factory=Tuning)
    """Memory, parallelism and guessing ahead."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM beyond these, none of OWN_ARGUMENTS."""

    @property
    def devices(self) -> int:
        """Processes that compute, each on a GPU of its own or all on a CPU."""
        shared = self.tensor_parallel_size * self.pipeline_parallel_size
        return shared * self.tuning.data_parallel_size


def further_arguments(text: str) -> dict[str, Any]:
    """Arguments of vLLM from a JSON object; none from an empty text. Raises ValueError.

    Whether vLLM has an argument of such a name only that version of it knows: VllmEngine asks.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as wrong:
        raise ValueError(f"is no JSON: {wrong}") from None
    if not isinstance(found, dict):
        raise ValueError('must be a JSON object, such as {"enable_expert_parallel": true}')
    for name in found:
        if name in OWN_ARGUMENTS:
            raise ValueError(f"may not hold {name}: the engine sets it; see the other settings")
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"holds {name!r}, which is no argument's name")
    return found


def process_variables(options: VllmOptions) -> Mapping[str, str]:
    """Variables that vLLM reads while it is imported and configured.

    They are vLLM's only way to be told these things. They are derived from our settings and
    written before the import, never over one that the operator has set: no setting of ours is
    read from the environment here.
    """
    variables = {
        # Nothing about this installation is sent to anybody.
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        # Its log records reach our handler instead of one of its own on stdout.
        "VLLM_CONFIGURE_LOGGING": "0",
        # Every stream waits while a regular expression is compiled; vLLM takes whole seconds.
        "VLLM_REGEX_COMPILATION_TIMEOUT_S": "1",
        # A fork would inherit the gRPC server's threads and sockets, and hang.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # The outputs of one step stay together, in one turn of the event loop.
        "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": str(max(128, 8 * options.max_num_seqs)),
        "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
        # Threads pinned to cores starve when the cores are shared with other processes.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if Path(options.model).exists() and not options.hub:
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def cpu_variables(options: VllmOptions) -> Mapping[str, str]:
    """Further variables where a CPU computes; read by the process that does."""
    # With as many spinning threads as cores, whatever else runs stalls every step.
    threads = options.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1)
    variables = {"OMP_NUM_THREADS": str(threads)}
    if options.enforce_eager is not False:
        # Some kernels are compiled even so, on first use: half a minute in the middle of
        # serving, the first time that somebody asks for log-probabilities.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables
