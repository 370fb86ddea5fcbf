"""What the local engine can be told. Meanings and bounds only: nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from services.chassis.settings import Secret, SettingsError, setting
from services.local_engine.on_vllm.options import further_arguments
from services.local_engine.slow_spells import slow_spells
from services.local_engine.step_model import StepModel
from services.local_engine.tuning_settings import TuningSettings


@dataclass(frozen=True, kw_only=True)
class Settings(TuningSettings):
    """The local engine's settings."""

    listen: str = setting("127.0.0.1:50052", help="Address and port of the gRPC server, host:port.")
    http_listen: str = setting(
        "127.0.0.1:9102",
        help="Address and port of /metrics, /livez, /readyz and /startupz, host:port.",
    )
    engine: Literal["vllm", "sim"] = setting(
        "vllm", help="vllm answers; sim is a simulation for tests and benchmarks."
    )
    model: str = setting(
        ".models/smollm2-135m-instruct",
        help="A checkpoint directory, or the name of a Hugging Face model.",
    )
    served_model_name: str = setting(
        "", help="The name that requests use. Empty: the last part of the model's name."
    )
    model_aliases: tuple[str, ...] = setting((), help="Other names that requests may use.")
    max_waiting: int = setting(
        2048, minimum=1, help="Requests that may wait here; further ones are refused as overload."
    )
    hang_after: float = setting(
        60.0,
        minimum=0,
        help="The engine hangs when it has work and ends no step for so long: health says not live "
        "and not ready until a step ends. A step takes less than a second, on a CPU with a long "
        "prompt seconds; loading is not counted. 0: hangs are not looked for.",
    )
    hang_exit: float = setting(
        120.0,
        minimum=0,
        help="An engine that hangs for so long ends its process, which fails its requests as "
        "UNAVAILABLE: whatever runs the process starts it again. Not below HANG_AFTER. 0: never.",
    )
    redis_url: Secret | None = setting(
        None,
        help="Redis that quotas of those who call engines directly are counted in, such as "
        "redis://:password@host:6379/0. Empty: each engine counts for itself.",
    )
    prefix_events: bool = setting(
        True, help="Tell routers what the prefix cache holds; off, they assume it."
    )
    step_model: str = setting(
        "",
        help="Pace that the reported step time ratio compares with: b0,b1,b2,b3 in microseconds "
        "a step, prefilled token, decoded token and token of context. Empty: learned from the "
        "steps seen (vllm), or Llama-3.1-8B on an H100 (sim).",
    )

    # vLLM
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", help="Precision. auto: the checkpoint's own; float32 on a CPU."
    )
    max_num_seqs: int = setting(256, minimum=1, help="Sequences that run at once at most.")
    max_model_len: int = setting(
        0, minimum=0, help="Context length in tokens. 0: the model's own (sim: 32768)."
    )
    max_num_batched_tokens: int = setting(
        0, minimum=0, help="Tokens that one step computes at most. 0: vLLM's choice (sim: 2048)."
    )
    gpu_memory_utilization: float = setting(
        0.9, minimum=0.05, maximum=1.0, help="Share of the GPU's memory that vLLM may use."
    )
    tensor_parallel_size: int = setting(1, minimum=1, help="GPUs that share each layer.")
    pipeline_parallel_size: int = setting(1, minimum=1, help="GPUs that share the layers.")
    enforce_eager: bool | None = setting(
        None, help="Skip compilation: a faster start, slower steps. Empty: only on a CPU."
    )
    quantization: str = setting(
        "",
        help="How the weights are quantised, by vLLM's name (fp8, awq_marlin, gptq_marlin, …). "
        "Empty: what the checkpoint says.",
    )
    vllm_args: str = setting(
        "",
        help="Further arguments of vLLM's AsyncEngineArgs, as a JSON object such as "
        '{"enable_expert_parallel": true}; none that the engine sets itself.',
    )
    cpu_kv_cache_gib: int = setting(2, minimum=1, help="On a CPU: size of the KV cache in GiB.")
    cpu_threads: int = setting(
        0, minimum=0, help="On a CPU: threads that compute. 0: all cores but one."
    )
    seed: int = setting(0, minimum=0, help="Seed of sampling where a request gives none.")

    # The simulation
    sim_speed: float = setting(
        1.0, minimum=0, help="Simulated steps are this many times faster; 0: they take no time."
    )
    sim_slowdown: float = setting(
        1.0, minimum=0.01, help="Steps take this many times longer than the step model says."
    )
    sim_slow_spells: str = setting(
        "",
        help="When steps take longer for a while, counted from the start: at=10s,for=5s,factor=3, "
        "again and again with every=60s as well; several with ; between. Simulation only.",
    )
    sim_kv_tokens: int = setting(131_072, minimum=64, help="Simulated KV cache, in tokens.")
    sim_output_tokens: int = setting(
        128, minimum=1, help="Mean length of a simulated answer that nothing cuts, in tokens."
    )
    sim_load_seconds: float = setting(0.0, minimum=0, help="How long the simulation loads.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.hang_exit < self.hang_after:
            raise SettingsError(["HANG_EXIT must not be below HANG_AFTER, unless it is 0"])
        if self.step_model:
            try:
                StepModel.parse(self.step_model)
            except ValueError as error:
                raise ValueError(f"step_model {error}") from None
        try:
            slow_spells(self.sim_slow_spells)
        except ValueError as error:
            raise ValueError(f"sim_slow_spells {error}") from None

        try:
            further_arguments(self.vllm_args)
        except ValueError as error:
            raise ValueError(f"vllm_args {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name and then its aliases."""
        name = self.served_model_name or (
            "sim" if self.engine == "sim" else PurePath(self.model).name
        )
        return (name, *self.model_aliases)
