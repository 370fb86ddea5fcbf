"""How a model is loaded at run time: the process's settings, with what a request says instead.

Validated as settings are. What could run somebody's code, or read elsewhere, is not among it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from anabranch.v1 import model_admin_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.chassis.settings import SettingsError
from services.local_engine.on_vllm.options import further_arguments
from services.local_engine.settings import Settings

_WITH_SETTING: Mapping[str, tuple[str, type, float, float]] = {
    "block_size": ("block_size", int, 0, 1024),
    "cpu_offload_gb": ("cpu_offload_gib", float, 0, 1 << 14),
    "data_parallel_size": ("data_parallel_size", int, 1, 1024),
    "enable_prefix_caching": ("prefix_caching", bool, 0, 1),
    "kv_cache_dtype": ("kv_cache_dtype", str, 0, 0),
}
"""Arguments of vLLM that a setting of ours stands for, its type and its bounds: a request that
gives one means the setting."""

ALLOWED_ARGUMENTS = frozenset(
    {
        *("async_scheduling", "calculate_kv_scales", "disable_cascade_attn"),
        *("disable_sliding_window", "enable_chunked_prefill", "enable_expert_parallel"),
        *("kv_cache_memory_bytes", "language_model_only", "long_prefill_token_threshold"),
        *("max_long_partial_prefills", "max_num_partial_prefills", "num_gpu_blocks_override"),
        *("skip_mm_profiling", "stream_interval", "swap_space"),
        *_WITH_SETTING,
    }
)
"""Arguments of vLLM that a request may give: none names a file, a class or a place elsewhere."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_MOST_ALIASES = 16
_MOST_ARGUMENT_CHARACTERS = 16 * 1024
_NUMBERS = {
    "gpu_memory_utilization": "gpu_memory_utilization",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "cpu_kv_cache_gib": "cpu_kv_cache_gib",
    "max_adapters": "max_adapters",
}
# A LoRA of the first model's, or what was said of its length, is nothing to another model; and
# what an operator trusts for one set of weights is not trusted for whichever is named later.
_NOT_INHERITED: Mapping[str, Any] = {
    "max_model_len": 0,
    "quantization": "",
    "adapters": (),
    "trust_remote_code": False,
}
# What belongs to the weights of the settings' model. A new version of it has the same; a model of
# another name would be given another's tokenizer, template or draft, and answer nonsense.
_OF_THE_MODEL: Mapping[str, Any] = {
    "tokenizer": "",
    "chat_template": "",
    "tool_parser": "",
    "reasoning_parser": "",
    "speculative": "",
}
_ARGUMENTS_OF_THE_MODEL = frozenset(
    {
        *("code_revision", "config_format", "generation_config", "hf_config_path"),
        *("hf_overrides", "logits_processors", "mm_processor_kwargs", "model_weights"),
        *("override_generation_config", "pooler_config", "revision", "tokenizer_mode"),
        *("tokenizer_revision",),
    }
)


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


def settings_for(
    settings: Settings, request: pb.LoadModelRequest, source: str = "", *, hub: bool = False
) -> Settings:
    """The settings of the model to load; `source` replaces the request's, a hub's name with `hub`.

    Raises Fault INVALID_REQUEST that lists every violation of `options`.
    """
    options = request.options
    faults: list[Violation] = []
    changes = dict(_NOT_INHERITED)
    another = request.name != settings.names[0]
    if another:
        changes |= _OF_THE_MODEL
    for field, setting in _NUMBERS.items():
        if options.HasField(field):
            changes[setting] = getattr(options, field)
    for field in ("quantization", "tool_parser", "reasoning_parser"):
        if getattr(options, field):
            changes[field] = getattr(options, field)
    if hub and not settings.load_format:
        # vLLM would take pickles from there where it finds nothing else.
        changes["load_format"] = "safetensors"
    if options.dtype:
        kinds = get_args(get_type_hints(Settings)["dtype"])
        if options.dtype not in kinds:
            faults.append(Violation("options.dtype", f"must be one of {', '.join(kinds)}"))
        else:
            changes["dtype"] = options.dtype
    own = further_arguments(settings.vllm_args)
    if another:
        own = {key: value for key, value in own.items() if key not in _ARGUMENTS_OF_THE_MODEL}
    more, tuned = _arguments(options.vllm_args, faults)
    changes["vllm_args"] = json.dumps(own | more) if own or more else ""
    changes |= tuned
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


def _arguments(asked: str, faults: list[Violation]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request's arguments of vLLM, and those of our settings that others of them stand for."""
    field = "options.vllm_args"
    if len(asked) > _MOST_ARGUMENT_CHARACTERS:
        faults.append(Violation(field, f"must be {_MOST_ARGUMENT_CHARACTERS} characters at most"))
        return {}, {}
    try:
        given, more = _split(asked)
    except ValueError as wrong:
        faults.append(Violation(field, str(wrong)))
        return {}, {}
    if refused := sorted(set(more) - ALLOWED_ARGUMENTS):
        faults.append(Violation(field, f"may not hold {', '.join(refused)} from a request"))
    tuned: dict[str, Any] = {}
    for key, value in given.items():
        setting, kind, low, high = _WITH_SETTING[key]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is not str and not low <= value <= high):
            bounds = "" if kind in (str, bool) else f" from {low} to {high}"
            faults.append(Violation(field, f"holds a {key} that is no {kind.__name__}{bounds}"))
        else:
            tuned[setting] = value
    return more, tuned


def _split(asked: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those arguments that have a setting, and the others. Raises ValueError."""
    if not asked.strip():
        return {}, {}
    try:
        found = json.loads(asked)
    except json.JSONDecodeError as wrong:
        raise ValueError(f"is no JSON: {wrong}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(found, dict):
        return {}, further_arguments(asked)
    given = {key: found.pop(key) for key in _WITH_SETTING if key in found}
    return given, further_arguments(json.dumps(found))
