"""What the installed vLLM and this machine have, as values: asked once, before a model is loaded.

A name that a version of vLLM does not tell is not checked: vLLM itself then refuses or takes it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import Any, get_args


@dataclass(frozen=True, slots=True)
class Installed:
    """Names that vLLM knows; an empty set is one that it does not tell."""

    version: str
    is_cpu: bool
    devices: int
    """GPUs that this process may use; 0 where they are not counted."""
    arguments: frozenset[str]
    """Of AsyncEngineArgs."""
    quantizations: frozenset[str] = frozenset()
    kv_cache_dtypes: frozenset[str] = frozenset()
    """On a CPU those that its attention has."""
    load_formats: frozenset[str] = frozenset()
    speculations: frozenset[str] = frozenset()


def installed() -> Installed:
    """Asks vLLM. Takes the seconds of its import when it is the first to."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    is_cpu = bool(current_platform.is_cpu())
    # General plugins bring quantisations of their own, such as GGUF.
    plugins = _part("vllm.plugins", "load_general_plugins")
    if plugins is not None:
        plugins()
    dtypes = _literals("vllm.config.cache", "CacheDType")
    backend = (
        _part("vllm.v1.attention.backends.cpu_attn", "CPUAttentionBackend") if is_cpu else None
    )
    if backend is not None:
        dtypes = frozenset(getattr(backend, "supported_kv_cache_dtypes", dtypes))
    methods = _part("vllm.model_executor.layers.quantization", "QUANTIZATION_METHODS")
    return Installed(
        version=str(vllm.__version__),
        is_cpu=is_cpu,
        devices=0 if is_cpu else int(current_platform.device_count()),
        arguments=frozenset(field.name for field in fields(AsyncEngineArgs)),
        quantizations=frozenset(map(str, methods or ())),
        kv_cache_dtypes=dtypes,
        load_formats=_literals("vllm.model_executor.model_loader", "LoadFormats"),
        speculations=_literals("vllm.config.speculative", "SpeculativeMethod"),
    )


def _part(module: str, name: str) -> Any:
    """A part of vLLM, or None where this version has it elsewhere."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _literals(module: str, name: str) -> frozenset[str]:
    """The strings of a Literal, nested ones included."""
    found: set[str] = set()
    left = [*get_args(_part(module, name))]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.add(one)
        else:
            left += get_args(one)
    return frozenset(found)
