"""How a model is loaded at run time: the process's settings, with what a request says instead.

Validated as settings are. What could run somebody's code, or read elsewhere, is not among it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from anabranch.v1 import model_admin_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.chassis.settings import SettingsError
from services.local_engine.on_vllm.options import further_arguments
from services.local_engine.settings import Settings

ALLOWED_ARGUMENTS = frozenset(
    {
        *("async_scheduling", "block_size", "calculate_kv_scales", "cpu_offload_gb"),
        *("data_parallel_size", "disable_cascade_attn", "disable_sliding_window"),
        *("enable_chunked_prefill", "enable_expert_parallel", "enable_prefix_caching"),
        *("kv_cache_dtype", "kv_cache_memory_bytes", "language_model_only"),
        *("limit_mm_per_prompt", "long_prefill_token_threshold", "max_long_partial_prefills"),
        *("max_num_partial_prefills", "num_gpu_blocks_override", "skip_mm_profiling"),
        *("stream_interval", "swap_space"),
    }
)
"""Arguments of vLLM that a request may give: none names a file, a class or a place elsewhere."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_MOST_ALIASES = 16
_NUMBERS = {
    "gpu_memory_utilization": "gpu_memory_utilization",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "cpu_kv_cache_gib": "cpu_kv_cache_gib",
    "max_adapters": "max_adapters",
}
# A LoRA of the first model's, or what was said of its length, is nothing to another model.
_NOT_INHERITED: dict[str, Any] = {"max_model_len": 0, "quantization": "", "adapters": ()}


def naming_faults(request: pb.LoadModelRequest) -> list[Violation]:
    """What is wrong with names and source."""
    faults = []
    if not _NAME.fullmatch(request.name):
        faults.append(Violation("name", "must be 1 to 200 letters, digits and . _ / -"))
    if not request.source or len(request.source) > 4096:
        faults.append(Violation("source", "must be a directory or a hub name"))
    if len(request.aliases) > _MOST_ALIASES:
        faults.append(Violation("aliases", f"must be {_MOST_ALIASES} at most"))
    for place, alias in enumerate(request.aliases[:_MOST_ALIASES]):
        if not _NAME.fullmatch(alias):
            faults.append(
                Violation(f"aliases[{place}]", "must be 1 to 200 letters, digits, . _ / -")
            )
        elif alias == request.name or alias in request.aliases[:place]:
            faults.append(Violation(f"aliases[{place}]", "is said twice"))
    return faults


def settings_for(settings: Settings, request: pb.LoadModelRequest, source: str = "") -> Settings:
    """The settings of the model to load; `source` replaces the request's.

    Raises Fault INVALID_REQUEST that lists every violation of `options`.
    """
    options = request.options
    faults: list[Violation] = []
    changes = dict(_NOT_INHERITED)
    for field, setting in _NUMBERS.items():
        if options.HasField(field):
            changes[setting] = getattr(options, field)
    if options.quantization:
        changes["quantization"] = options.quantization
    if options.dtype:
        kinds = get_args(get_type_hints(Settings)["dtype"])
        if options.dtype not in kinds:
            faults.append(Violation("options.dtype", f"must be one of {', '.join(kinds)}"))
        else:
            changes["dtype"] = options.dtype
    changes["vllm_args"] = _arguments(settings.vllm_args, options.vllm_args, faults)
    for field, low, high in (
        ("gpu_memory_utilization", 0.01, 1.0),
        ("max_model_len", 1, 1 << 24),
        ("max_num_seqs", 1, 1 << 16),
        ("cpu_kv_cache_gib", 1, 1 << 14),
        ("max_adapters", 0, 1024),
    ):
        value = changes.get(field)
        if options.HasField(field) and not low <= value <= high:  # type: ignore[operator]
            faults.append(Violation(f"options.{field}", f"must be {low} to {high}"))
    if faults:
        raise invalid(faults)
    try:
        return replace(
            settings,
            model=source or request.source,
            served_model_name=request.name,
            model_aliases=tuple(request.aliases),
            **changes,
        )
    except (ValueError, SettingsError) as wrong:
        raise invalid([Violation("options", str(wrong))]) from None


def _arguments(own: str, asked: str, faults: list[Violation]) -> str:
    """The settings' arguments, with the request's instead of those of the same name."""
    arguments = further_arguments(own)
    # What an operator trusts for one model is not trusted for whichever is named later.
    arguments.pop("trust_remote_code", None)
    try:
        more = further_arguments(asked)
    except ValueError as wrong:
        faults.append(Violation("options.vllm_args", str(wrong)))
        return ""
    refused = sorted(set(more) - ALLOWED_ARGUMENTS)
    if refused:
        faults.append(
            Violation("options.vllm_args", f"may not hold {', '.join(refused)} from a request")
        )
    merged = arguments | more
    return json.dumps(merged) if merged else ""
