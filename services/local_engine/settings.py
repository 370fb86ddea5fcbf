"""What the local engine can be told. Meanings and bounds only: nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from services.chassis.settings import Secret, SettingsError, setting
from services.local_engine.engine import ConstraintKind
from services.local_engine.images.addresses import Place, parse_networks
from services.local_engine.images.limits import ImageLimits
from services.local_engine.model_sources import check_patterns
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
    task: Literal["generate", "embed"] = setting(
        "generate",
        help="What the model is loaded for: generate answers, embed makes vectors of texts (an "
        "embedding model, or the layers of a generating one). A process does one of the two.",
    )
    served_model_name: str = setting(
        "", help="The name that requests use. Empty: the last part of the model's name."
    )
    model_aliases: tuple[str, ...] = setting((), help="Other names that requests may use.")
    max_waiting: int = setting(
        2048,
        minimum=1,
        help="Requests that may wait here for each model; further ones are refused as overload.",
    )
    max_waiting_tokens: int = setting(
        4_194_304,
        minimum=0,
        help="Tokens of prompts that may wait for each model to be read; further requests are "
        "refused as overload, to be tried again once so many have been read. 0: only requests are "
        "counted.",
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
    model_sources: tuple[str, ...] = setting(
        (),
        help="Where operators may load models and adapters from at run time: directories, and hub "
        "names such as hf:Qwen/*, comma separated. Empty: from nowhere.",
    )
    max_adapters: int = setting(
        0,
        minimum=0,
        maximum=1024,
        help="LoRA adapters that a model may have at a time; each takes memory of the model's GPU "
        "for the largest rank. 0: none.",
    )
    max_adapter_rank: int = setting(
        16, minimum=1, maximum=512, help="The largest rank of a LoRA adapter."
    )
    adapters: tuple[str, ...] = setting(
        (),
        help="Adapters that are loaded at the start, name=directory, comma separated; requests ask "
        "for model:name.",
    )
    sleep_mode: bool = setting(
        False,
        help="Let operators put models to sleep, which frees their GPU's memory. GPUs only; it "
        "keeps vLLM from some of its memory optimisations.",
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
    tool_parser: str = setting(
        "",
        help="vLLM's parser of this model's tool calls (hermes, llama3_json, mistral, …); see "
        "docs/tools-and-reasoning.md. Empty: requests with tools are refused.",
    )
    reasoning_parser: str = setting(
        "",
        help="vLLM's parser of this model's reasoning (deepseek_r1, qwen3, …); see "
        "docs/tools-and-reasoning.md. Empty: reasoning is part of the text.",
    )
    chat_template: str = setting(
        "",
        help="A file with a Jinja chat template, at most 1 MiB, used in place of the model's own. "
        "Empty: the model's own.",
    )
    vllm_args: str = setting(
        "",
        help="Further arguments of vLLM's AsyncEngineArgs, as a JSON object such as "
        '{"enable_expert_parallel": true}; none that the engine sets itself.',
    )
    trust_remote_code: bool = setting(
        False,
        help="Run Python that comes with the checkpoint, with everything that this process may do. "
        "Only for a checkpoint whose code you have read.",
    )
    response_formats: tuple[str, ...] = setting(
        tuple(kind.value for kind in ConstraintKind),
        choices=[kind.value for kind in ConstraintKind],
        help="Forms of answers that requests may ask for.",
    )
    compact_json: bool = setting(
        False, help="Constrained JSON without white space: fewer tokens, and none to get lost in."
    )
    grammar_timeout: float = setting(
        0.5,
        minimum=0.05,
        maximum=30.0,
        help="Longest time to compile a request's schema, regular expression or grammar; one that "
        "takes longer is refused.",
    )
    grammar_processes: int = setting(
        2, minimum=1, maximum=16, help="Schemas, expressions and grammars that compile at once."
    )
    grammar_memory_mib: int = setting(
        512, minimum=64, help="Memory that compiling one of them may take, in MiB."
    )
    cpu_kv_cache_gib: int = setting(2, minimum=1, help="On a CPU: size of the KV cache in GiB.")
    cpu_threads: int = setting(
        0, minimum=0, help="On a CPU: threads that compute. 0: all cores but one."
    )
    seed: int = setting(0, minimum=0, help="Seed of sampling where a request gives none.")

    # Images, of models that read them
    images: int = setting(
        8, minimum=0, maximum=64, help="Images that a request may hold at most. 0: none."
    )
    image_bytes: int = setting(
        8 * 1024 * 1024, minimum=1024, help="Bytes of an image at most, encoded as it comes."
    )
    image_request_bytes: int = setting(
        16 * 1024 * 1024, minimum=1024, help="Bytes of all images of a request together at most."
    )
    image_pixels: int = setting(
        40_000_000,
        minimum=1024,
        help="Pixels of all images of a request together at most; each takes three bytes while "
        "the image is decoded. Checked before it is.",
    )
    image_urls: tuple[str, ...] = setting(
        (),
        help="Where images may be fetched from, over https: hosts, or all below one, with a port "
        "or the beginning of a path where wanted, such as images.example.org, *.example.org or "
        "store.example.org:8443/public/. Empty: from nowhere, only images in requests.",
    )
    image_networks: tuple[str, ...] = setting(
        (),
        help="Private networks that these hosts may lead into, such as 10.20.0.0/16. Empty: none, "
        "only public addresses.",
    )
    image_ca_file: Path | None = setting(
        None,
        help="PEM file of who may certify these hosts besides those that the system trusts. "
        "Empty: nobody else.",
    )
    image_timeout: float = setting(
        10.0, minimum=0.1, maximum=120.0, help="Time in which an image must have been fetched."
    )

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
            self.image_limits()
        except ValueError as error:
            raise ValueError(f"image_urls {error}") from None
        try:
            parse_networks(self.image_networks)
        except ValueError as error:
            raise ValueError(f"image_networks {error}") from None
        try:
            check_patterns(self.model_sources)
        except ValueError as error:
            raise ValueError(f"model_sources {error}") from None
        _ = self.adapter_paths
        if len(self.adapters) > self.max_adapters:
            raise SettingsError([f"ADAPTERS names {len(self.adapters)}, more than MAX_ADAPTERS"])

        try:
            further_arguments(self.vllm_args)
        except ValueError as error:
            raise ValueError(f"vllm_args {error}") from None

    def image_limits(self) -> ImageLimits:
        """What images requests may hold. Raises ValueError for a place that is none."""
        return ImageLimits(
            bytes_each=self.image_bytes,
            bytes_all=self.image_request_bytes,
            pixels_all=self.image_pixels,
            places=tuple(map(Place.parse, self.image_urls)),
        )

    @property
    def adapter_paths(self) -> tuple[tuple[str, str], ...]:
        """Names and directories of the adapters of the start. Raises SettingsError."""
        pairs = [tuple(part.strip() for part in one.split("=", 1)) for one in self.adapters]
        names = [pair[0] for pair in pairs]
        if any(len(pair) != 2 or not all(pair) for pair in pairs) or len(set(names)) < len(names):
            raise SettingsError(["ADAPTERS must be name=directory, each name once"])
        return tuple((name, path) for name, path in pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name and then its aliases."""
        name = self.served_model_name or (
            "sim" if self.engine == "sim" else PurePath(self.model).name
        )
        return (name, *self.model_aliases)
