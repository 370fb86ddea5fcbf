"""Settings of memory, of parallelism and of guessing ahead: what docs/quantization-and-memory.md
explains. Meanings and bounds only."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.common_settings import CommonSettings
from services.chassis.settings import setting
from services.local_engine.on_vllm.tuning import Tuning, speculation


@dataclass(frozen=True, kw_only=True)
class TuningSettings(CommonSettings):
    """The part of the engine's settings that says how vLLM uses memory and devices."""

    kv_cache_dtype: str = setting(
        "",
        help="What keys and values are stored as, by vLLM's name: fp8 (e4m3) holds twice the "
        "tokens of 16 bits, at a small loss. Empty: as the model computes.",
    )
    cpu_offload_gib: float = setting(
        0.0,
        minimum=0,
        help="GiB of weights for each GPU that stay in the machine's memory and cross the bus in "
        "each step: a model that does not fit runs, slowly. GPUs only.",
    )
    kv_offload_gib: float = setting(
        0.0,
        minimum=0,
        help="GiB of the machine's memory that blocks of the KV cache move to before they are "
        "lost, so that a prefix seen long ago is still found. GPUs only.",
    )
    data_parallel_size: int = setting(
        1,
        minimum=1,
        help="Engine cores in this process, each with all weights on GPUs of its own and "
        "MAX_NUM_SEQS sequences; routers then assume what their caches hold. More engines behind "
        "the router do the same, and fail one by one: this is for expert-parallel models.",
    )
    speculative: str = setting(
        "",
        help="Guess tokens ahead and check them in one step, as a JSON object of vLLM's such as "
        '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}; draft_model '
        "and eagle name a model as well. Greedy answers stay the same. Empty: no.",
    )
    load_format: str = setting(
        "",
        help="How weights are read, by vLLM's name; dummy: random ones, for benchmarks. Empty: "
        "what the checkpoint is.",
    )
    tokenizer: str = setting(
        "",
        help="Name or directory of a tokenizer, where it is not beside the weights, as with a "
        "GGUF file. Empty: the model's own.",
    )
    prefix_caching: bool = setting(
        True,
        help="Keep the KV cache of prompts for those that begin alike. Off, each is computed anew.",
    )
    block_size: int = setting(
        0,
        minimum=0,
        maximum=1024,
        help="Tokens in a block of the KV cache, the unit in which prefixes are found again. 0: "
        "vLLM's choice (16 on GPUs, 128 on CPUs).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            speculation(self.speculative)
        except ValueError as error:
            raise ValueError(f"speculative {error}") from None

    @property
    def tuning(self) -> Tuning:
        """These settings as the engine takes them."""
        return Tuning(
            kv_cache_dtype=self.kv_cache_dtype,
            cpu_offload_gib=self.cpu_offload_gib,
            kv_offload_gib=self.kv_offload_gib,
            data_parallel_size=self.data_parallel_size,
            speculative=speculation(self.speculative),
            load_format=self.load_format,
            tokenizer=self.tokenizer,
            prefix_caching=self.prefix_caching,
            block_size=self.block_size,
        )
