"""Whether this vLLM on this machine can do what the options ask, before it loads anything. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Set
from pathlib import PurePath

from services.local_engine.on_vllm.installed import Installed
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.tuning import tuning_arguments

_NODES = frozenset({"data_parallel_size_local", "distributed_executor_backend", "nnodes"})
"""Arguments by which an operator spreads a model over more than this machine."""


def check_options(options: VllmOptions, here: Installed) -> None:
    """Raises ValueError with everything that is wrong, and what to do about each."""
    problems = [*_unknown_arguments(options, here), *_unknown_names(options, here)]
    problems += [*_of_platform(options, here), *_of_weights(options, here)]
    if problems:
        raise ValueError("; ".join(problems))


def _unknown_arguments(options: VllmOptions, here: Installed) -> Iterator[str]:
    for name in sorted(set(options.further) - here.arguments):
        yield (
            f"vllm_args names {name}, which vLLM {here.version} does not have"
            f"{_hint(name, here.arguments)}"
        )
    for name in sorted(set(tuning_arguments(options.tuning)) - here.arguments):
        yield f"vLLM {here.version} has no argument {name}: leave its setting empty"


def _unknown_names(options: VllmOptions, here: Installed) -> Iterator[str]:
    tuning = options.tuning
    asked = (
        ("quantization", options.quantization, here.quantizations),
        ("load_format", tuning.load_format, here.load_formats),
        ("method of speculative", tuning.speculative.get("method", ""), here.speculations),
    )
    for setting, name, known in asked:
        if name and known and name not in known:
            unknown = f"which vLLM {here.version} does not know{_hint(name, known)}"
            yield f"{setting} is {name}, {unknown}"
    dtype = tuning.kv_cache_dtype
    if dtype and here.kv_cache_dtypes and dtype not in here.kv_cache_dtypes:
        where = " on a CPU" if here.is_cpu else ""
        known_ones = ", ".join(sorted(here.kv_cache_dtypes))
        yield f"kv_cache_dtype is {dtype}, and vLLM {here.version}{where} has {known_ones}"


def _of_platform(options: VllmOptions, here: Installed) -> Iterator[str]:
    tuning = options.tuning
    if here.is_cpu:
        if tuning.cpu_offload_gib:
            yield "cpu_offload_gib is for GPUs: on a CPU the weights are in its memory already"
        if tuning.kv_offload_gib:
            yield (
                "kv_offload_gib is for GPUs: on a CPU the KV cache is in its memory already, and "
                "cpu_kv_cache_gib is its size"
            )
        return
    wanted = options.devices
    if here.devices and wanted > here.devices and not _NODES & set(options.further):
        yield (
            f"data × tensor × pipeline parallel is {wanted} GPUs, and {here.devices} are visible: "
            "make one of them smaller, or give this process more GPUs"
        )


def _of_weights(options: VllmOptions, here: Installed) -> Iterator[str]:
    if PurePath(options.model).suffix != ".gguf":
        return
    if here.is_cpu:
        yield (
            "the model is a GGUF file, which vLLM reads on GPUs only: make a checkpoint of it, as "
            "tools/fetch_model.py does"
        )
        return
    if here.quantizations and "gguf" not in here.quantizations:
        yield (
            f"the model is a GGUF file, and vLLM {here.version} reads none: install the package "
            "vllm-gguf-plugin beside it, or name a checkpoint in safetensors"
        )
    if not options.tuning.tokenizer:
        yield (
            "the model is a GGUF file, whose own tokenizer vLLM converts slowly and not always "
            "exactly: set tokenizer to the original model's name or directory"
        )


def _hint(name: str, known: Set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
